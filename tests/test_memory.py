"""Freed memory is handed out again."""

import platform
import subprocess
import sys

import pytest

PAGE_FAULTS = """
import resource
import numpy as np
from avel.memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        np.full(2**24, 1.0)  # 128 MB, written once and freed
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

usual = faults()
assert keep_freed_memory()
faults()  # the heap grows once
print(usual, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_large_arrays_come_without_page_faults_from_the_second_on() -> None:
    script = subprocess.run([sys.executable, "-c", PAGE_FAULTS], capture_output=True, text=True, check=True)
    usual, kept = map(int, script.stdout.split())
    assert kept < usual / 20
