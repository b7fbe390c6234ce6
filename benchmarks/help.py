"""Time `avel --help` as a whole process, beside a Python that does nothing and one that imports torch.

python benchmarks/help.py
"""

import statistics
import subprocess
import sys
import time

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "avel --help": ["-m", "avel", "--help"],
    "avel train --help": ["-m", "avel", "train", "--help"],
    "python -c 'import torch'": ["-c", "import torch"],
}


def main() -> None:
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(11):
        for name, words in COMMANDS.items():  # in turn, so that a slow moment of the machine affects all of them
            began = time.perf_counter()
            subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
            times[name].append(time.perf_counter() - began)
    for name, values in times.items():
        print(f"{name:28} median {statistics.median(values[1:]):.3f} s, maximum {max(values[1:]):.3f} s")


if __name__ == "__main__":
    main()
