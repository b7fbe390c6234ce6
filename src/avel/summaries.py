"""What commands print of their results: tables of scores, baselines and files, and lines."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, stdev
from typing import TYPE_CHECKING

from rich.filesize import decimal
from rich.table import Column, Table

from avel.baselines import full_name
from avel.console import complain, console, say
from avel.data.ave.files import NAMES
from avel.text import counted, first_names, visible
from avel.types import Finding
from avel.web import terminal_timeline
from avel.worlds.simulated.plan import MATCH_CLASSES, MATCH_WHOLE, VERSION

if TYPE_CHECKING:  # which would import torch
    from avel.comparison import Scores
    from avel.data.ave.export import ExportReport
    from avel.data.ave.survey import Survey
    from avel.evaluation import BaselineTable
    from avel.features.extract import ExtractReport
    from avel.present import Presented
    from avel.worlds.simulated.simulate import SimulateReport


def print_findings(findings: Sequence[Finding]) -> None:
    """A line for each finding."""
    for finding in findings:
        say(str(finding))


def print_files(found: Survey) -> None:
    """AVE's files, there or missing."""
    table = Table("file", "", "content", "size", title=f"{found.folder}: {found.origin}")
    for key, names in NAMES.items():
        path = found.files.get(key)
        what = f"{key} {found.shapes[key]}" if key in found.shapes else key
        size = decimal(path.stat().st_size) if path else ""
        table.add_row(path.name if path else " or ".join(names), "there" if path else "missing", what, size)
    console().print(table)


def print_tasks(found: Survey) -> None:
    """The tasks that AVE's files are enough for, and what is missing for the others."""
    for task, lacking in found.lacking().items():
        say(f"task {task}: {'not ready without ' + ', '.join(lacking) if lacking else 'ready'}")


def print_simulated(report: SimulateReport) -> None:
    """What lies in the folder of a simulation."""
    say(
        f"{counted(report.rows, 'row')} of {counted(report.videos, 'video')}, and "
        f"{counted(report.background_videos, 'video')} of background alone, "
        f"{decimal(report.bytes)} in {report.folder}: simulated, not AVE"
    )
    say(f"splits: {', '.join(f'{size} {name}' for name, size in report.splits.items())}")
    classes, aves = (
        ", ".join(f"{number} {name}" for name, number in of.items()) for of in (report.match_classes, MATCH_CLASSES)
    )
    say(f"classes in the match splits: {classes}; in AVE: {aves}")
    if any(report.match_classes[name] < MATCH_CLASSES[name] for name in ("train", "test")):
        say(f"with {MATCH_WHOLE} rows or more, version {VERSION} of the set has as many as AVE in train and test")


def print_exported(report: ExportReport) -> None:
    """What was written as AVE's files."""
    extra = f" and {report.background_rows} of background alone" if report.background_rows else ""
    rows, classes = counted(report.rows, "row"), counted(len(report.classes), "class")
    say(f"{rows}{extra}, {classes}, {decimal(report.bytes)} in {report.folder}")
    if report.splits:
        say(f"splits: {', '.join(f'{size} {name}' for name, size in report.splits.items())}")
    if report.several:
        rows = counted(report.several, "row")
        say(f"several events in {rows}: Annotations.txt has the longest, labels.h5 all of them")
    if report.left_out:
        clips = counted(len(report.left_out), "clip")
        say(f"left out, in none of AVE's splits: {clips}, {first_names(report.left_out)}")
    say(f"Written: {', '.join(report.files)}")


def print_extracted(report: ExtractReport, clips: int) -> None:
    """What became of the clips of an extraction."""
    say(f"{counted(report.done, 'clip')} extracted, {report.skipped} already there: {report.store}")
    if report.choices:
        name, taken = report.choices[0]
        others = f"; and of {len(report.choices) - 1} more, see streams in store.json" if report.choices[1:] else ""
        say(f"{name}, what was read: {taken}{others}")
    if report.mute:
        say(f"without sound, which training refuses: {counted(len(report.mute), 'clip')}, {first_names(report.mute)}")
    for failure in report.failed:
        complain(visible(f"failed: {failure['id']}: {failure['cause']}"))
    if report.failed:
        told = f"{len(report.failed)} of {counted(clips, 'clip')} failed, see {report.store / 'failures.jsonl'}"
        complain(f"{told}; the same command tries them again")


def print_localized(one: Presented) -> None:
    """The timeline of a video, and the files; or why there is none."""
    if one.timeline is None:
        complain(f"failed: {visible(str(one.video))}: {one.error}")
        return
    console().print(terminal_timeline(one.timeline))
    if one.kept:
        say(f"Already there: {', '.join(map(str, one.files))}")
        return
    for tag in ("framing", "streams", "time stamps", "length", "channels"):
        if tag in one.timeline.tags:
            say(f"{one.video}, what was read: {tag} {one.timeline.tags[tag]}")
    say(f"Written: {', '.join(map(str, one.files))}")


def print_scores(found: Sequence[Scores]) -> None:
    """The scores of one run or several, the trivial baselines, the differences between runs, and the files written."""
    _print_run(found[0]) if len(found) == 1 else _print_runs(found)
    _print_baselines_of(found)
    for scores in found:
        if scores.difference is not None:
            low, high = scores.difference.low, scores.difference.high
            verdict = "no difference seen" if low <= 0 <= high else "a difference"
            say(
                f"{scores.run} - {scores.against}: {scores.difference.value:+.4f}, 95% of resampled videos and seeds "
                f"in [{low:+.4f}, {high:+.4f}] over {counted(scores.compared, 'clip')}: {verdict}"
            )
    for scores in found:
        for folder in scores.folders:
            say(f"Written: {folder}/evaluation_{scores.each[0]['split']}.json, predictions, plots/")
        if scores.written:
            say(f"Written: {', '.join(str(file) for file in scores.written)}")


def _print_run(scores: Scores) -> None:
    """One run: mean, spread and each seed's value of what its task is scored by, and the recall of each class."""
    first = scores.each[0]
    title = f"{first['model']}, task {first['task']}, split {first['split']}, chosen on {first['selected_on']}"
    title += f"; {first['data']}" if first["data"] else ""
    if first["task"] == "cml":
        title += f"; trained {first['trained_mode']}; share of {first['events']} events found exactly"
    print_spread(scores.measures, title)
    for score, folder in zip(scores.each, scores.folders, strict=True):
        if score["task"] == "cml":
            mode = score["trained_mode"]
            what, value, (low, high) = f"{mode}, mean of both", score[mode]["mean"], score[mode]["interval_95"]
        else:
            what, value, (low, high) = "segment accuracy", score["segment_accuracy"], score["interval_95"]
        say(f"{folder}: {what} {value:.4f}, 95% of resampled videos in [{low:.4f}, {high:.4f}]")
    if scores.class_recall:
        table = Table("class", "recall", title="Recall: share of a class's segments that the model finds")
        for name, values in scores.class_recall.items():
            table.add_row(name, mean_and_spread(values) if values else "no such segment")
        console().print(table)


def _print_runs(found: Sequence[Scores]) -> None:
    """Several runs: a row each, mean and spread of what they are scored by."""
    measures = [name for name in found[0].measures if all(name in scores.measures for scores in found)]
    data = any(scores.each[0]["data"] for scores in found)
    run = Column("run", overflow="fold")  # cut off, the names of several runs may look the same
    table = Table(run, "model, task, chosen on", "seeds", *measures, *(["data"] if data else []))
    table.title = f"split {found[0].each[0]['split']}: mean +- spread over the seeds"
    for scores in found:
        first = scores.each[0]
        values = [mean_and_spread(scores.measures[name]) for name in measures]
        about = f"{first['model']}, {first['task']}, {first['selected_on']}"
        table.add_row(str(scores.run), about, str(len(scores.each)), *values, *([first["data"]] if data else []))
    console().print(table)


def _print_baselines_of(found: Sequence[Scores]) -> None:
    """The trivial baselines beside the scores: once, or for each run if they differ."""
    each = [scores.each[0]["baselines"] for scores in found]
    alike = all(values == each[0] for values in each)
    for scores, values in zip(found[:1] if alike else found, each, strict=False):
        for name, value in values.items():
            say(f"trivial baseline{'' if alike else f' of {scores.run}'}, {full_name(name)}: {value:.4f}")


def print_baselines(found: BaselineTable) -> None:
    """What the trivial baselines score on a split."""
    title = f"Trivial baselines, from labels alone{f'; {found.origin}' if found.origin else ''}"
    table = Table("task", "split", "baseline", "%", title=title)
    for name, value in found.segment.items():
        table.add_row(
            "segments", f"{found.split}, {counted(found.clips, 'clip')}", full_name(name), f"{100 * value:.2f}"
        )
    for name, value in found.windows.items():
        where = f"{found.windows_split}, {counted(found.windows_counted, 'clip')}"
        table.add_row("A2V = V2A", where, full_name(name), f"{100 * value:.1f}")
    console().print(table)


def print_spread(measures: dict[str, list[float]], title: str | None = None) -> None:
    """A table of measures: mean, spread and every seed's value."""
    table = Table("measure", "mean +- spread", "each seed", title=title)
    for name, values in measures.items():
        table.add_row(name, mean_and_spread(values), "  ".join(f"{value:.3f}" for value in values))
    console().print(table)


def mean_and_spread(values: Sequence[float]) -> str:
    """``0.871 +- 0.012``: mean and sample standard deviation; the mean alone if there is one value."""
    return f"{mean(values):.3f} +- {stdev(values):.3f}" if len(values) > 1 else f"{values[0]:.3f}"
