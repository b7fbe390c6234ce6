"""Write the tables of the README and the docs from the files under results/, and draw the study's pictures.

    python benchmarks/readme.py

A table stands between ``<!-- table: results/FILE.json -->`` and ``<!-- end -->``. A test checks that the pages hold
exactly the tables that this script writes.
"""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import stdev
from typing import Any

from matplotlib.figure import Figure

from avel.baselines import full_name

ROOT = Path(__file__).parents[1]
#: The name of a row in earlier results/leak.json, and its name today.
PARTNER = ("joint, a stranger's partner", "joint, searched stream fused with another video:")
PAGES = (
    ROOT / "README.md",
    *(ROOT / "docs" / f"{page}.md" for page in ("ave", "simulated", "data", "study-tables", "train")),
)
BLOCK = re.compile(r"(<!-- table: (?P<file>\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def table(file: Path) -> str:
    """One results file as Markdown. Its last line says which command, commit and machine made the numbers."""
    return TABLES[file.name](json.loads(file.read_text()))


def birth(results: dict[str, Any], commits: Sequence[str] = ()) -> str:
    """Command, commit and machine, for the line under a table. Runs of several commits name them all."""
    names = []
    for described in commits or [results["commit"]]:
        commit, _, dirty = described.partition("-")
        names.append(commit[:12] + (" with uncommitted changes" if dirty else ""))
    word = "commits" if len(names) > 1 else "commit"
    return f"`{results['command']}`, {word} {', '.join(names)}, {results['machine']}."


def worlds(results: dict[str, Any]) -> str:
    """Rendered clips: one row for each model or baseline."""
    seeds = ", ".join(str(world["seed"]) for world in results["worlds"])
    lines = [
        "**Held-out rendered clips: their scenes, instances and voices do not occur in training.** Mean +- standard "
    ]
    lines[0] += f"deviation over three sets of clips, each rendered with its own seed ({seeds})."
    lines.append("")
    lines += ["| model | segment accuracy | event F1 at IoU 0.5 |", "|---|---|---|"]
    for name, row in results["summary"].items():
        lines.append(f"| {name} | {row.get('segment_accuracy', '')} | {row['event_f1']} |")
    return "\n".join([*lines, "", birth(results)]) + "\n"


def simulated(results: dict[str, Any]) -> str:
    """Accuracy of the linear probe, and statistics of the simulated audio beside those of real VGGish features."""
    seeds = ", ".join(map(str, results["seeds"]))
    lines = [
        f"**{results['title']}.** Test accuracy of the probe, mean +- standard deviation over the seeds {seeds}.",
        "",
    ]
    lines += ["| probe on | both streams | audio | visual |", "|---|---|---|---|"]
    for name, row in results["probe"].items():
        lines.append(f"| {name} | {row['both']} | {row['audio']} | {row['visual']} |")
    sound = results["sound_of_background_videos"]
    lines += ["", "**Audio features of the 178 videos that hold background only: simulated, and VGGish on AVE.**", ""]
    lines += ["| statistic | simulated | AVE |", "|---|---|---|"]
    for name, value in sound["simulated"].items():
        cells = (_plain(value), _plain(sound["AVE"][name]) if "AVE" in sound else "not available")
        lines.append(f"| {name.replace('_', ' ')} | {cells[0]} | {cells[1]} |")
    visual = ", ".join(f"{name} {value:.3g}" for name, value in results["vision"].items())
    return "\n".join([*lines, "", f"Simulated visual features: {visual}.", "", birth(results)]) + "\n"


def hostile(results: dict[str, Any]) -> str:
    """What happens to changed files (one row for each kind) and to hostile folders (one row for each command)."""
    counts = [sum(of_one.values()) for of_one in results["files"].values()]
    folders = sum(next(iter(results["folders"].values())).values())
    lines = [
        f"**Changed files and hostile folders.** {sum(counts)} changed files (seed {results['seed']}), each read once:",
        "",
    ]
    for first, part, taken in (("file", "files", "as it says"), ("command", "folders", "done")):
        lines += [f"| {first} | cases | refused | {'read correctly' if part == 'files' else 'done'} | anything else |"]
        lines += ["|---|---|---|---|---|"]
        for name, found in results[part].items():
            total, refused, well = sum(found.values()), found.get("refused", 0), found.get(taken, 0)
            lines.append(f"| {name} | {total} | {refused} | {well} | {total - refused - well} |")
        if part == "files":
            lines += ["", f"{folders} hostile folders, each given to five commands:", ""]
    return "\n".join([*lines, "", birth(results)]) + "\n"


def data(results: dict[str, Any]) -> str:
    """The way of the data: import, batches, half precision."""
    copied, batches, half = (results[name] for name in ("import", "batches", "half"))
    first = batches["first_batch"]
    whole, step = first["whole file"], batches["training_step_seconds"]
    rows = [
        (
            "import with a cold cache, relative to reading the input and writing as many bytes as the store has",
            f"{copied['ratio']:.2f} x",
        ),
        ("size of the store", f"{copied['store_bytes'] / 1e9:.2f} GB of {copied['input_bytes'] / 1e9:.2f} GB"),
        ("peak anonymous memory of the import", f"{copied['peak_anonymous_bytes'] / 2**20:.0f} MiB"),
        ("shuffled float32 batch of 128", f"{1000 * batches['ours_seconds']:.0f} ms"),
        ("- share of this machine's speed of conversion in memory", f"{batches['copy_rate']:.0%}"),
        ("- memory beyond the batch itself", f"{batches['extra_memory_of_batch']:.1%}"),
        *(
            (f"- from contiguous h5, {name}", f"{1000 * seconds:.0f} ms")
            for name, seconds in batches["theirs_seconds"].items()
        ),
        ("- speed-up over the faster of these", f"{batches['ratio']:.1f} x"),
        ("first batch from the store", f"{first['store']['seconds']:.2f} s"),
        ("first batch if the whole file is read first", f"{whole['seconds']:.1f} s, {_gigabytes(whole)} of memory"),
        *((f"training step on the CPU: {name}", f"{seconds:.2f} s") for name, seconds in step.items()),
        (
            "segments whose predicted class changes with float16",
            f"{half['differ']} of {half['segments']} ({half['share']:.3%})",
        ),
        ("- largest change of a probability", f"{half['largest_difference_of_a_probability']:.1e}"),
    ]
    lines = [
        f"**{results['title']}.**",
        "",
        "| what | measured |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in rows),
    ]
    return "\n".join([*lines, "", birth(copied)]) + "\n"


def study(results: dict[str, Any]) -> str:
    """Each row of the study with its difference to the first row of its task, and the interval of that difference."""
    units = {"full": "segment accuracy", "weak": "segment accuracy", "cml": "mean of A2V and V2A"}
    pieces = []
    for task, unit in units.items():
        rows = [row for row in results["rows"] if row["task"] == task]
        if not rows:
            continue
        videos = [results["videos"][f"{task} {split}"] for split in ("train", "val", "test")]
        head = f"**{results['title']}. Task {task}, {unit} in %.**"
        pieces += [f"{head} {videos[0]} training, {videos[1]} validation and {videos[2]} test videos.", ""]
        pieces += ["| setting | validation | difference on validation | test | difference on test | seeds | updates |"]
        pieces += ["|---|---|---|---|---|---|---|"]
        for row in rows:
            cells = [_percent(row["val"]), _difference(row["val"]), _percent(row["test"]), _difference(row["test"])]
            pieces.append(f"| {row['name']} | {' | '.join(cells)} | {len(row['seeds'])} | {row['updates']} |")
        for split, name in (("val", "validation"), ("test", "test")):
            pieces += ["", f"Trivial baselines on {name}: {_trivial(_baselines(results)[task][split])}."]
        pieces += [""]
        if task == "cml":
            pieces += ["**The same runs on the test videos, by mode and direction, in %.**", ""]
            names = [f"{mode}_{direction}" for mode in ("joint", "strict") for direction in ("a2v", "v2a")]
            pieces += [
                "| setting | "
                + " | ".join(
                    name.replace("_", " ").upper().replace("JOINT", "joint").replace("STRICT", "strict")
                    for name in names
                )
                + " |"
            ]
            pieces += ["|---" * 5 + "|"]
            pieces += [f"| {row['name']} | {' | '.join(_mean(row['test'][name]) for name in names)} |" for row in rows]
            pieces += [""]
    height, width = results["grid"]
    size = f"Grid {height} x {width}, {results['visual_dim']} visual features, D = {results['width']}"
    commits = sorted({commit for row in results["rows"] for commit in row["commits"]})
    pieces += [f"{size}, batch {results['batch_size']}. {birth(results, commits)}"]
    return "\n".join(pieces) + "\n"


def leak(results: dict[str, Any]) -> str:
    """Accuracy of cross-modality localization on noise, and with the query stream of another video."""
    pieces = []
    for part in results.values():
        trained = part["trained"]
        names = list(dict.fromkeys(key for row in trained.values() for key in row))
        pieces += [f"**{part['title']}. Events found exactly, in %.** {part['events']} test events.", ""]
        pieces += [
            "| tested | " + " | ".join(f"trained {mode}" for mode in trained) + " |",
            "|---" * (1 + len(trained)) + "|",
        ]
        for key in names:
            label = key.replace("a2v", "A2V").replace("v2a", "V2A").replace(*PARTNER)
            cells = [_mean(row[key]["each"]) if key in row else "" for row in trained.values()]
            pieces.append(f"| {label} | {' | '.join(cells)} |")
        seeds = ", ".join(map(str, part["seeds"]))
        note = f"{part['updates']} updates, width {part['width']}, seeds {seeds}"
        pieces += ["", f"Trivial baselines: {_trivial(_baselines(part))}. {note}. {birth(part)}", ""]
    return "\n".join(pieces) + "\n"


def train(results: dict[str, Any]) -> str:
    """Seconds per epoch, and how much of the machine's speed of matrix multiplication the training reaches."""
    lines = [
        f"**{results['title']}.** {results['32-true']['windows']} windows, batch 128, {results['threads']} threads.",
        "",
    ]
    lines += [
        "| precision | seconds per epoch | share of the float32 product's speed | validation accuracy, small set |",
        "|---|---|---|---|",
    ]
    for precision in ("32-true", "bf16-mixed"):
        row = results[precision]
        small = row["small_accuracy"]
        lines.append(
            f"| {precision} | {row['median_seconds']:.1f} s | {row['median_share']:.0%} "
            f"| {small['mean']:.3f} +- {small['spread']:.3f} |"
        )
    rates = results["32-true"]["float32_product_rates"]
    steps = results["32-true"]["operations_of_a_step"]
    note = f"The float32 product: {min(rates) / 1e9:.0f} to {max(rates) / 1e9:.0f} GFLOP/s between epochs; bfloat16: "
    own = results["bf16-mixed"]["own_product_rate"]
    note += f"{own / 1e9:.2g}. A training step takes {sum(steps.values()) / 1e9:.1f} GFLOP."
    return (
        "\n".join(
            [
                *lines,
                "",
                f"{note} The small set was trained for {results['small_updates']} updates.",
                "",
                birth(results),
            ]
        )
        + "\n"
    )


def parity(results: dict[str, Any]) -> str:
    """Features of real files beside the references': one row per file, largest and mean difference in each cell."""

    def cell(of: dict[str, float]) -> str:
        return f"{of['largest']:.1e}, {of['mean']:.1e}"

    with_whom = ", ".join(f"{name} {version}" for name, version in results["references"].items())
    lines = [f"**Features of real files beside those of the reference programs, with random weights.** {with_whom}. "]
    lines[0] += (
        "Each cell: largest difference relative to the largest value, mean difference relative to the mean value."
    )
    lines += [
        "",
        "| VGG-19 | size | resize differs by, grey levels | float32 | as stored, float16 | with FFmpeg's scaler |",
    ]
    lines += ["|---" * 6 + "|"]
    for row in results["pictures"]:
        size = "{} x {}".format(*row["size"])
        cells = [cell(row[name]) for name in ("features", "stored", "ffmpeg_scaler")]
        lines.append(f"| {row['file']} | {size} | {row['grey_levels']} | {' | '.join(cells)} |")
    lines += [
        "",
        "| VGGish | rate | `per_second` | `continuous` | resampled by FFmpeg | its log-mel, largest difference |",
    ]
    lines += ["|---" * 6 + "|"]
    for row in results["sounds"]:
        cells = [cell(row[name]) for name in ("per_second", "continuous", "ffmpeg_resampler")]
        log_mel = f"{row['ffmpeg_resampler']['log_mel']:.2g}"
        lines.append(f"| {row['file']} | {row['rate']} Hz | {' | '.join(cells)} | {log_mel} |")
    note = f"{results['frames_per_segment']} frames per segment. "
    return "\n".join([*lines, "", note + birth(results)]) + "\n"


def extract(results: dict[str, Any]) -> str:
    """VGG-19 beside the machine's matrix product, one frame at a time, and in the extraction of a whole clip."""
    clip, rows = results["clip"], results["precisions"]
    size = "{} x {}".format(*clip["size"])
    lines = [f"**{results['title']}.** {clip['frames_used']} frames of {size}, {results['threads']} threads.", ""]
    lines += ["| what | " + " | ".join(rows) + " |", "|---" * (1 + len(rows)) + "|"]
    for name, key, form in (
        ("matrix product, GFLOP/s", "product_gflops", "{:.3g}"),
        ("share of it that batched VGG-19 reaches", "share_of_product", "{:.0%}"),
        ("frames per second", "frames_per_second", "{:.2g}"),
        ("seconds of work per second of video", "real_time_factor", "{:.1f}"),
        ("one call per frame, relative to batched calls", "faster_than_frame_by_frame", "{:.2f} x"),
        ("the whole clip, relative to VGG-19 alone", "whole_clip_over_vgg19", "{:.2f} x"),
    ):
        cells = (form.format(row[key]) if key in row else "" for row in rows.values())
        lines.append(f"| {name} | {' | '.join(cells)} |")
    decode, resize = results["decode_seconds"], results["decode_choose_and_resize_seconds"]
    note = f"Decoding alone takes {decode:.2f} s; with choosing and resizing the frames, {resize:.2f} s. Peak memory: "
    return "\n".join([*lines, "", f"{note}{results['peak_memory_mib']:.0f} MiB.", "", birth(results)]) + "\n"


def _percent(of: dict[str, Any]) -> str:
    return f"{100 * of['mean']:.1f}" + (f" +- {100 * of['spread']:.1f}" if of["spread"] is not None else "")


def _mean(each: list[float]) -> str:
    spread = f" +- {100 * stdev(each):.1f}" if len(each) > 1 else ""
    return f"{100 * sum(each) / len(each):.1f}{spread}"


def _difference(of: dict[str, Any]) -> str:
    """The difference with its interval, in bold if the interval excludes 0."""
    if "difference" not in of:
        return ""
    value, low, high = (100 * each for each in of["difference"])
    text = f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"
    return text if low <= 0 <= high else f"**{text}**"


def _baselines(results: dict[str, Any]) -> dict[str, Any]:
    """Scores of the trivial baselines; files of earlier work call them floors."""
    found: dict[str, Any] = results["baselines"] if "baselines" in results else results["floors"]
    return found


def _trivial(scores: dict[str, float]) -> str:
    return ", ".join(f"{full_name(name)} {100 * value:.1f}" for name, value in scores.items())


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
    "study_choices.json": study,
    "study_modules.json": study,
    "study_early.json": study,
    "study_full_choices.json": study,
    "study_full_paper.json": study,
    "study_full_weak.json": study,
    "study_full_cml.json": study,
    "leak.json": leak,
    "train.json": train,
    "parity.json": parity,
    "extract.json": extract,
    "hostile.json": hostile,
}


def filled(text: str) -> str:
    """The text with every table block filled from its file."""
    return BLOCK.sub(lambda match: match[1] + table(ROOT / match["file"]) + match[3], text)


def draw(results: dict[str, Any], picture: Path) -> None:
    """The differences of a study with their intervals: a panel per task, a line per row."""
    tasks = list(dict.fromkeys(row["task"] for row in results["rows"]))
    rows = {task: [row for row in results["rows"] if row["task"] == task] for task in tasks}
    heights = [len(rows[task]) for task in tasks]
    figure = Figure(figsize=(9, 1.6 + 0.27 * sum(heights)), dpi=120, layout="constrained")
    panels = figure.subplots(len(tasks), sharex=True, gridspec_kw={"height_ratios": heights}, squeeze=False)[:, 0]
    for panel, task in zip(panels, tasks, strict=True):
        first, *others = rows[task]
        for split, color, offset in (("val", "#0072b2", -0.16), ("test", "#d55e00", 0.16)):
            for place, row in enumerate(others):
                value, low, high = (100 * each for each in row[split]["difference"])
                fill = "none" if low <= 0 <= high else color
                panel.plot([low, high], [place + offset] * 2, color=color, linewidth=1.6)
                panel.plot(value, place + offset, "o", color=color, markerfacecolor=fill, markersize=5)
            panel.plot([], [], "o-", color=color, label={"val": "validation", "test": "test"}[split])
        panel.axvline(0, color="#5b6470", linewidth=1)
        panel.set_yticks(range(len(others)), [row["name"] for row in others])
        panel.set_ylim(len(others) - 0.5, -0.5)
        panel.grid(axis="x", color="#d5dae0", linewidth=0.8)
        panel.set_title(
            f"task {task}, against {first['name']}: {100 * first['val']['mean']:.1f} on validation, "
            f"{100 * first['test']['mean']:.1f} on test",
            loc="left",
            fontsize=10,
        )
    figure.suptitle(results["title"], fontsize=12, x=0.01, ha="left")
    about = "difference in percentage points, 95% interval over videos and seeds; hollow if the interval includes 0"
    figure.supxlabel(about, fontsize=10)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", ncols=2, frameon=False)
    figure.savefig(picture)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(filled(page.read_text()))
    for name in ("study_choices", "study_modules"):
        draw(json.loads((ROOT / "results" / f"{name}.json").read_text()), ROOT / "docs" / "images" / f"{name}.png")
