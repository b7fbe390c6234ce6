"""Writes the tables of the README and the docs from the files under results/.

    python benchmarks/readme.py

A test checks that the pages hold exactly what this writes.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "docs" / "simulated.md", ROOT / "docs" / "data.md")
BLOCK = re.compile(r"(<!-- table: (?P<file>\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def table(file: Path) -> str:
    """One results file as Markdown with its birth under it."""
    return TABLES[file.name](json.loads(file.read_text()))


def birth(results: dict[str, Any]) -> str:
    """Command, commit and machine, as they stand under a table."""
    commit, _, dirty = results["commit"].partition("-")
    mark = " with uncommitted changes" if dirty else ""
    return f"`{results['command']}`, commit {commit[:12]}{mark}, {results['machine']}."


def worlds(results: dict[str, Any]) -> str:
    """Rendered clips: a row a network."""
    seeds = ", ".join(str(world["seed"]) for world in results["worlds"])
    lines = [f"**{results['title']}.** Mean +- spread over the world seeds {seeds}.", ""]
    lines += ["| | segment accuracy | event F1 at IoU 0.5 |", "|---|---|---|"]
    for name, row in results["summary"].items():
        lines.append(f"| {name} | {row.get('segment_accuracy', '')} | {row['event_f1']} |")
    return "\n".join([*lines, "", birth(results)]) + "\n"


def simulated(results: dict[str, Any]) -> str:
    """The probe, and the sound's statistics beside VGGish's."""
    seeds = ", ".join(map(str, results["seeds"]))
    lines = [f"**{results['title']}.** Test accuracy of the probe, mean +- spread over the seeds {seeds}.", ""]
    lines += ["| probe on | both streams | audio | visual |", "|---|---|---|---|"]
    for name, row in results["probe"].items():
        lines.append(f"| {name} | {row['both']} | {row['audio']} | {row['visual']} |")
    sound = results["sound_of_background_videos"]
    lines += ["", "**Sound of the 178 videos of background alone: simulated, and VGGish's in AVE.**", ""]
    lines += ["| | simulated | AVE |", "|---|---|---|"]
    for name, value in sound["simulated"].items():
        cells = (_plain(value), _plain(sound["AVE"][name]) if "AVE" in sound else "not at hand")
        lines.append(f"| {name.replace('_', ' ')} | {cells[0]} | {cells[1]} |")
    vision = ", ".join(f"{name} {value:.3g}" for name, value in results["vision"].items())
    return "\n".join([*lines, "", f"Vision, simulated: {vision}.", "", birth(results)]) + "\n"


def data(results: dict[str, Any]) -> str:
    """The data path: import, batches, half precision."""
    copied, batches, half = (results[name] for name in ("import", "batches", "half"))
    first = batches["first_batch"]
    whole, step = first["whole file"], batches["training_step_seconds"]
    rows = [
        ("import, cold cache, to a plain read of the input and write of the store's size", f"{copied['ratio']:.2f} x"),
        ("store", f"{copied['store_bytes'] / 1e9:.2f} GB of {copied['input_bytes'] / 1e9:.2f} GB"),
        ("peak anonymous memory of the import", f"{copied['peak_anonymous_bytes'] / 2**20:.0f} MiB"),
        ("shuffled float32 batch of 128", f"{1000 * batches['ours_seconds']:.0f} ms"),
        ("- share of this machine's rate of converting in memory", f"{batches['copy_rate']:.0%}"),
        ("- extra memory over the batch", f"{batches['extra_memory_of_batch']:.1%}"),
        *(
            (f"- from contiguous h5, {name}", f"{1000 * seconds:.0f} ms")
            for name, seconds in batches["theirs_seconds"].items()
        ),
        ("- the faster of these to ours", f"{batches['ratio']:.1f} x"),
        ("first batch from the store", f"{first['store']['seconds']:.2f} s"),
        ("first batch where the file is read whole", f"{whole['seconds']:.1f} s, {_gigabytes(whole)} of memory"),
        *((f"training step on the CPU: {name}", f"{seconds:.2f} s") for name, seconds in step.items()),
        ("segments whose argmax float16 changes", f"{half['differ']} of {half['segments']} ({half['share']:.3%})"),
        ("- largest change of a probability", f"{half['largest_difference_of_a_probability']:.1e}"),
    ]
    lines = [f"**{results['title']}.**", "", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]
    return "\n".join([*lines, "", birth(copied)]) + "\n"


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(f"{each:.3f}" for each in value)
    return f"{value:.4g}"


def _gigabytes(first: dict[str, Any]) -> str:
    return f"{first['peak_anonymous_bytes'] / 1e9:.1f} GB"


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "worlds.json": worlds,
    "simulated.json": simulated,
    "data.json": data,
}


def filled(text: str) -> str:
    """The text with every table block filled from its file."""
    return BLOCK.sub(lambda match: match[1] + table(ROOT / match["file"]) + match[3], text)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(filled(page.read_text()))
