"""What avel does with changed files and hostile folders: refuse them, read them correctly, or go wrong.

    python benchmarks/hostile.py

This takes the cases of tests/test_hostile_files.py, prints a table and writes results/hostile.json.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from birth import ROOT, birth

sys.path.insert(0, str(ROOT / "tests"))

from hostile_cases import COMMANDS, FILES, FOLDERS, cases, command_outcome, make_folder, outcome, write_good

from avel.files import write_file

COLUMNS = ("refused", "as it says", "done")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="seed of the changes")
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "hostile.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        good = Path(place, "good")
        good.mkdir()
        write_good(good)
        slowest = 0.0
        files = {kind: Counter[str]() for kind in FILES}
        for case in cases(good, arguments.seed):
            began = time.process_time()
            files[case.kind][_told(outcome(case, good))] += 1
            slowest = max(slowest, time.process_time() - began)
        folders = {command: Counter[str]() for command in COMMANDS}
        for number, (_, hostile, put) in enumerate(FOLDERS):
            folder = Path(place, str(number))
            make_folder(good, folder, hostile, put)
            for command in COMMANDS:
                folders[command][_told(command_outcome(command, folder, hostile))] += 1
            shutil.rmtree(folder)
    results: dict[str, Any] = {
        "title": "Changed files and hostile folders",
        **birth(),
        "seed": arguments.seed,
        "slowest_seconds": round(slowest, 3),
        "files": files,
        "folders": folders,
    }
    for name, counts in {**files, **folders}.items():
        print(f"{name:24} {dict(counts)}")
    write_file(arguments.results, json.dumps(results, indent=1) + "\n")


def _told(what: str) -> str:
    return what if what in COLUMNS else "wrong"


if __name__ == "__main__":
    main()
