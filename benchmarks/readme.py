"""Writes the tables of the README from the files under results/.

    python benchmarks/readme.py

A test checks that the README holds exactly what this writes.
"""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"(<!-- table: (?P<file>\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def table(file: Path) -> str:
    """One results file as a Markdown table with its birth under it."""
    results = json.loads(file.read_text())
    seeds = ", ".join(str(world["seed"]) for world in results["worlds"])
    lines = [f"**{results['title']}.** Mean +- spread over the world seeds {seeds}.", ""]
    lines += ["| | segment accuracy | event F1 at IoU 0.5 |", "|---|---|---|"]
    for name, row in results["summary"].items():
        lines.append(f"| {name} | {row.get('segment_accuracy', '')} | {row['event_f1']} |")
    lines += ["", f"`{results['command']}`, commit {results['commit'][:12]}, {results['machine']}."]
    return "\n".join(lines) + "\n"


def filled(text: str) -> str:
    """The text with every table block filled from its file."""
    return BLOCK.sub(lambda match: match[1] + table(ROOT / match["file"]) + match[3], text)


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(filled(readme.read_text()))
