"""The command line: one small function per verb, each calling the public Python.

Exit codes: 0 all done, 1 some clips failed, 2 usage, bad input or a disk that fails, 130 Ctrl-C, 141 where the reader
of a pipe is gone, as `head` is after its lines.
"""

from __future__ import annotations

import argparse
import io
import math
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import yaml
from jsonargparse import (  # type: ignore[attr-defined]
    ActionConfigFile,
    ArgumentParser,
    DefaultHelpFormatter,
    Namespace,
    get_loader,
    set_loader,
    set_parsing_settings,
)

import avel
from avel.config import TrainConfig
from avel.errors import AvelError, AvelNotice
from avel.files import check_folder, file_sha256, make_folder, write_file
from avel.text import visible

if TYPE_CHECKING:  # imported inside the verbs that use them: `avel --help` must answer at once
    from collections.abc import Iterator

    from rich.console import Console

    from avel.comparison import Scores
    from avel.data.ave.survey import Survey
    from avel.features.recipe import Streams
    from avel.timeline import Timeline
    from avel.types import Finding, Progress, Report, TrainStatus

OK, SOME_FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
#: Those of `avel.present`, which is not imported for a help text.
FORMATS = ["json", "csv", "vtt", "audacity", "png", "html", "elan", "label-studio", "sed-eval"]
SECONDS_BETWEEN_LINES = 60  # of a training whose epochs are long, where no bar can be drawn
WORTH_AN_ESTIMATE = 8  # clips; the estimate itself decodes two

_read_yaml = get_loader("yaml")


def demo(arguments: Namespace) -> int:
    from avel.demo import MIN_SECONDS, demo

    with bars() as progress:
        result = demo(
            arguments.out,
            clips=arguments.clips,
            long_videos=arguments.long_videos,
            epochs=arguments.epochs,
            seed=arguments.seed,
            workers=arguments.workers,
            progress=progress,
        )
    console().print(result.table())
    say(f"Look at it: {result.page}")
    options = f"--threshold {result.threshold:g} --min-seconds {MIN_SECONDS:g} --html"
    say(f"Your own video: avel localize VIDEO --model {result.model} {options}")
    return OK


def data_render(arguments: Namespace) -> int:
    from avel.worlds.rendered.render import render

    with bars() as progress:
        table = render(
            arguments.out,
            clips=arguments.clips,
            long_videos=arguments.long_videos,
            seed=arguments.seed,
            workers=arguments.workers,
            progress=progress,
        )
    say(f"{arguments.clips} clips, labels in {table}")
    return OK


def data_import_ave(arguments: Namespace) -> int:
    from avel.data.ave.importing import import_ave
    from avel.data.ave.survey import survey

    if arguments.dry_run:
        found = survey(arguments.folder)
        _print_files(found)
        _print_findings(found.findings)
        _print_tasks(found)
        return OK
    if arguments.out is None:
        raise AvelError("no --out", "a folder for the store", "add --out STORE, or --dry-run to see what is there")
    with bars() as progress:
        report = import_ave(arguments.folder, arguments.out, workers=arguments.workers, progress=progress)
    _print_findings(report.findings)
    kept = f", {report.clips - report.done} of them from an earlier run" if report.done < report.clips else ""
    say(f"{report.clips} clips in {report.store}{kept}; {report.survey.origin}")
    _print_tasks(report.survey)
    return OK


def data_simulate(arguments: Namespace) -> int:
    from rich.filesize import decimal

    from avel.worlds.simulated.plan import MATCH_CLASSES, MATCH_WHOLE, VERSION
    from avel.worlds.simulated.simulate import simulate

    settings = {key: value for key, value in arguments.items() if key not in ("out", "grid", "set_version")}
    version = VERSION if arguments.set_version is None else arguments.set_version
    with bars() as progress:
        report = simulate(arguments.out, grid=tuple(arguments.grid), version=version, **settings, progress=progress)
    splits = ", ".join(f"{size} {name}" for name, size in report.splits.items())
    say(
        f"{report.rows} rows of {report.videos} videos and {report.background_videos} of background alone, "
        f"{decimal(report.bytes)} in {report.folder}: simulated, not AVE"
    )
    say(f"splits: {splits}")
    classes, aves = (
        ", ".join(f"{number} {name}" for name, number in of.items()) for of in (report.match_classes, MATCH_CLASSES)
    )
    say(f"classes in the match splits: {classes}; in AVE: {aves}")
    if any(report.match_classes[name] < MATCH_CLASSES[name] for name in ("train", "test")):
        say(f"version {VERSION} of the set holds as many in train and test from {MATCH_WHOLE} rows on")
    say(f"Next: avel data import-ave {report.folder} --out STORE")
    return OK


def data_check(arguments: Namespace) -> int:
    from avel.data.check import check, exit_code

    with bars() as progress:
        findings = check(arguments.path, window=arguments.window, progress=progress)
    _print_findings(findings)
    errors = sum(finding.level == "error" for finding in findings)
    say(f"{errors or 'no'} errors in {arguments.path}")
    return SOME_FAILED if exit_code(findings) else OK


def data_compare(arguments: Namespace) -> int:
    import json

    from avel.data.compare import compare
    from avel.plots import comparison_picture

    written = [arguments.out / name for name in ("comparison.json", "comparison.png")] if arguments.out else []
    there = [str(file) for file in written if os.path.lexists(file)]
    if there and not arguments.overwrite:
        raise AvelError(
            f"{' and '.join(there)} {'are' if there[1:] else 'is'} there",
            "new files",
            "choose another --out, or add --overwrite",
        )
    with bars() as progress:
        found = compare(arguments.one, arguments.other, worst=arguments.worst, progress=progress)
    for line in found.lines():
        say(line)
    if written:
        make_folder(arguments.out)
        write_file(written[0], json.dumps(found.to_json(), indent=1))
        relative = {"visual": found.visual, "audio": found.audio}
        comparison_picture(
            {kind: [clip.relative for clip in each.clips] for kind, each in relative.items()},
            written[1],
            title=f"{found.a} against {found.b}",
        )
        say(f"Written: {arguments.out}/comparison.json, comparison.png")
    return OK


def export_h5(arguments: Namespace) -> int:
    from rich.filesize import decimal

    from avel.data.ave.export import export_h5

    settings = {key: value for key, value in arguments.items() if key not in ("store", "out")}
    with bars() as progress:
        report = export_h5(arguments.store, arguments.out, **settings, progress=progress)
    extra = f" and {report.background_rows} of background alone" if report.background_rows else ""
    say(f"{report.rows} rows{extra}, {len(report.classes)} classes, {decimal(report.bytes)} in {report.folder}")
    if report.splits:
        say(f"splits: {', '.join(f'{size} {name}' for name, size in report.splits.items())}")
    if report.several:
        say(f"{report.several} rows have several events: Annotations.txt tells the longest, labels.h5 all of them")
    if report.left_out:
        some = ", ".join(report.left_out[:3]) + (", ..." if report.left_out[3:] else "")
        say(f"{len(report.left_out)} clips are in none of AVE's splits and were left out: {some}")
    say(f"Written: {', '.join(report.files)}")
    return OK


def _print_files(found: Survey) -> None:
    """AVE's files, there or missing."""
    from rich.filesize import decimal
    from rich.table import Table

    from avel.data.ave.files import NAMES

    table = Table("file", "", "what", "size", title=f"{found.folder}: {found.origin}")
    for key, names in NAMES.items():
        path = found.files.get(key)
        what = f"{key} {found.shapes[key]}" if key in found.shapes else key
        size = decimal(path.stat().st_size) if path else ""
        table.add_row(path.name if path else " or ".join(names), "there" if path else "missing", what, size)
    console().print(table)


def _print_findings(findings: Sequence[Finding]) -> None:
    for finding in findings:
        say(str(finding))


def _print_tasks(found: Survey) -> None:
    """What AVE's files serve, and what is missing for the rest."""
    for task, lacking in found.lacking().items():
        say(f"task {task}: {'not without ' + ', '.join(lacking) if lacking else 'ready'}")


def extract(arguments: Namespace) -> int:
    from avel.features.estimate import estimate_seconds
    from avel.features.extract import extract
    from avel.features.folders import in_words
    from avel.features.recipe import Recipe
    from avel.features.sources import read_source

    recipe = Recipe(
        visual=arguments.visual,
        audio=arguments.audio,
        visual_options=_extractor_options("visual", arguments),
        audio_options=_extractor_options("audio", arguments),
        segment_seconds=arguments.segment_seconds,
        framing=arguments.framing,
        streams=_streams(arguments),
        missing_audio=arguments.missing_audio,
        device=arguments.device,
        clip_seconds_limit=arguments.clip_seconds_limit,
        clip_memory_limit=arguments.clip_memory_limit,
    )
    given = {name: arguments[name] for name in ("videos", "extra_splits", "workers")}
    found = read_source(arguments.source, videos=arguments.videos, extra_splits=arguments.extra_splits)
    number = len(found.clips)
    if found.left_out:
        complain(in_words(found.left_out))
    if number > WORTH_AN_ESTIMATE and not arguments.out.exists() and arguments.engine == "local":
        with suppress(AvelError):  # clips that cannot be looked into are for the extraction to report
            seconds = estimate_seconds(arguments.source, recipe, **given)
            console().print(f"{number} clips, about {clock(seconds)} on this machine")
    with bars() as progress:
        report = extract(
            arguments.source,
            arguments.out,
            recipe,
            **given,
            engine=arguments.engine,
            progress=progress,
        )
    say(f"{report.done} clips extracted, {report.skipped} were there already: {report.store}")
    if networks := [name for name in (arguments.visual, arguments.audio) if name != "classical"]:
        say(f"device: {' and '.join(networks)} ran on {report.device}")
    if report.choices:
        name, taken = report.choices[0]
        others = f"; so have {len(report.choices) - 1} more, see streams in store.json" if report.choices[1:] else ""
        say(f"{name}, what was read: {taken}{others}")
    if report.mute:
        names = ", ".join(report.mute[:3]) + (", ..." if report.mute[3:] else "")
        say(f"without sound, not to be trained on: {len(report.mute)} of them, {names}")
    for failure in report.failed:
        complain(visible(f"failed: {failure['id']}: {failure['cause']}"))
    if report.failed:
        told = f"{len(report.failed)} of {number} clips failed, see {report.store / 'failures.jsonl'}"
        complain(f"{told}; the same command tries them again")
    return SOME_FAILED if report.failed else OK


def _extractor_options(kind: str, arguments: Namespace) -> dict[str, Any]:
    """Options of an extractor: those given by --KIND-options, and those that have an option of their own here."""
    from avel.features import weights_option

    options = weights_option(kind, arguments[kind], arguments[f"{kind}_weights"])
    if kind == "visual" and arguments.frames_per_segment is not None:
        options["frames_per_segment"] = arguments.frames_per_segment
    given: dict[str, Any] = arguments[f"{kind}_options"]
    for name in options.keys() & given.keys():
        raise AvelError(
            f"--{kind}-options.{name} beside the option that says the same", f"{name} once", "leave out one of the two"
        )
    return {**options, **given}


def _streams(arguments: Namespace) -> Streams:
    """Which streams of a file were asked for."""
    from avel.features.recipe import Streams

    return Streams(arguments.video_stream, arguments.audio_stream)


def train(arguments: Namespace) -> int:
    from avel.training import train_seeds

    settings = {key: value for key, value in arguments.items() if key not in ("config", "seeds")}
    config = TrainConfig(**settings)
    seeds = arguments.seeds or [config.seed]
    with training_bars() as report:
        runs = train_seeds(config, seeds, notice=complain, report=report)
    if os.environ.get("RANK", "0") != "0":  # of torchrun's processes one speaks
        return OK
    measure = "mean of A2V and V2A" if config.task == "cml" else "accuracy"
    for run, seed in zip(runs, seeds, strict=True):
        line = (
            f"seed {seed}: {config.select_on} {measure} {run.best_accuracy:.4f} at epoch {run.best_epoch}: {run.folder}"
        )
        say(line)
    if len(runs) > 1:
        from avel.data.store import open_store

        measures = {f"{config.select_on} {measure}": [run.best_accuracy for run in runs]}
        print_spread(measures, open_store(config.store).origin or None)
    from avel.baselines import full_name

    for name, value in runs[0].baselines.items():
        say(f"trivial baseline on {config.select_on}, {full_name(name)}: {value:.4f}")
    say(f"Next: avel evaluate {config.out}")
    return OK


def evaluate(arguments: Namespace) -> int:
    from avel.comparison import evaluate_runs

    if arguments.baselines:
        return _baselines(arguments)
    with bars() as progress:
        scores = evaluate_runs(
            arguments.run,
            arguments.split,
            against=arguments.against,
            store=arguments.store,
            device=arguments.device,
            progress=progress,
        )
    _print_run(scores[0]) if len(scores) == 1 else _print_runs(scores)
    _print_baselines(scores)
    for found in scores:
        if found.difference is not None:
            verdict = "no difference seen" if found.difference.low <= 0 <= found.difference.high else "a difference"
            say(
                f"{found.run} - {found.against}: {found.difference.value:+.4f}, 95% of resampled videos and seeds in "
                f"[{found.difference.low:+.4f}, {found.difference.high:+.4f}] over {found.compared} clips: {verdict}"
            )
    for found in scores:
        for folder in found.folders:
            say(f"Written: {folder}/evaluation_{arguments.split}.json, predictions, plots/")
        if found.written:
            say(f"Written: {', '.join(str(file) for file in found.written)}")
    return OK


def _print_run(scores: Scores) -> None:
    """One run: mean, spread and each seed's value of what its task is scored by, and the recall of each class."""
    from rich.table import Table

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
        table = Table("class", "recall", title="Recall over the seconds with that label")
        for name, values in scores.class_recall.items():
            table.add_row(name, mean_and_spread(values) if values else "no such second")
        console().print(table)


def _print_runs(scores: Sequence[Scores]) -> None:
    """Several runs: a row each, mean and spread of what they are scored by."""
    from rich.table import Table

    measures = [name for name in scores[0].measures if all(name in found.measures for found in scores)]
    data = any(found.each[0]["data"] for found in scores)
    table = Table("run", "model, task, chosen on", "seeds", *measures, *(["data"] if data else []))
    table.title = f"split {scores[0].each[0]['split']}: mean +- spread over the seeds"
    for found in scores:
        first = found.each[0]
        values = [mean_and_spread(found.measures[name]) for name in measures]
        about = f"{first['model']}, {first['task']}, {first['selected_on']}"
        table.add_row(str(found.run), about, str(len(found.each)), *values, *([first["data"]] if data else []))
    console().print(table)


def _print_baselines(scores: Sequence[Scores]) -> None:
    """The trivial baselines beside the scores: once, or for each run where the runs' splits differ."""
    from avel.baselines import full_name

    baselines = [found.each[0]["baselines"] for found in scores]
    alike = all(each == baselines[0] for each in baselines)
    for found, values in zip(scores[:1] if alike else scores, baselines, strict=False):
        for name, value in values.items():
            say(f"trivial baseline{'' if alike else f' of {found.run}'}, {full_name(name)}: {value:.4f}")


def _baselines(arguments: Namespace) -> int:
    from rich.table import Table

    from avel.baselines import full_name
    from avel.checkpoint import seeds_of
    from avel.evaluation import baselines

    for path in arguments.run:
        found = baselines(seeds_of(path)[0], arguments.split, store=arguments.store)
        title = f"Trivial baselines, from labels alone{f'; {found.origin}' if found.origin else ''}"
        table = Table("task", "split", "baseline", "%", title=title)
        for name, value in found.segment.items():
            table.add_row("segments", f"{found.split}, {found.clips} clips", full_name(name), f"{100 * value:.2f}")
        for name, value in found.windows.items():
            where = f"{found.windows_split}, {found.windows_counted} clips"
            table.add_row("A2V = V2A", where, name, f"{100 * value:.1f}")
        console().print(table)
    return OK


def localize(arguments: Namespace) -> int:
    from avel.data.table import read_truth
    from avel.present import FINGERPRINT, file_names, fingerprint, finished, present
    from avel.web import check_index, index_page, terminal_timeline

    _refuse_two_ways(arguments)
    given, arguments.videos = arguments.videos, _videos_of(arguments.videos)
    names = file_names(arguments.videos)
    formats = [*arguments.formats, *(["html"] if arguments.html else [])]
    index = None
    if "html" in formats and (given != arguments.videos or len(given) > 1):
        index = arguments.out / ("videos.html" if "index" in names else "index.html")
        check_index(index)
    truth, told = read_truth(arguments.truth, arguments.videos) if arguments.truth else ({}, [])
    for line in told:
        complain(visible(line))
    find, made_from = _by_model(arguments) if arguments.labels is None else _by_words(arguments)
    options = {"min_seconds": arguments.min_seconds}
    if arguments.threshold is not None:  # each way has its own default
        options["threshold"] = arguments.threshold
    found: list[tuple[Timeline, Path]] = []
    failed: list[tuple[str, str]] = []
    streams = _streams(arguments)
    made_from |= options | {"streams": [streams.video, streams.audio]}
    todo: list[tuple[Path, str, str, Timeline | None]] = []
    for video, name in zip(arguments.videos, names, strict=True):
        try:  # before any work, so that nobody waits for what cannot be written
            labelled = [astuple(span) for span in truth[video].spans] if video in truth else None
            mark = fingerprint(video, arguments.out, **made_from, truth=labelled)
            known = None if arguments.overwrite else finished(video, arguments.out, name, formats, mark)
            todo.append((video, name, mark, known))
        except AvelError as error:
            failed.append((str(video), error.found))
            complain(f"failed: {visible(str(video))}: {error}")
    for video, name, mark, known in todo:
        if known is not None:
            console().print(terminal_timeline(known))
            say(f"{video}: there already, as {arguments.out / name} with {', '.join(formats)}")
            found.append((known, arguments.out / f"{name}.html"))
            continue
        try:
            with bars() as progress:
                timeline = find(video, **options, streams=streams, progress=progress)
                tags = {**timeline.tags, FINGERPRINT: mark}
                timeline = replace(timeline, truth=truth[video].spans if video in truth else None, tags=tags)
                files = present(timeline, arguments.out, name, formats, overwrite=arguments.overwrite)
        except AvelError as error:
            failed.append((str(video), error.found))
            complain(f"failed: {visible(str(video))}: {error}")
            continue
        console().print(terminal_timeline(timeline))
        for tag in ("framing", "streams", "time stamps", "length", "channels"):
            if tag in timeline.tags:
                say(f"{video}, what was read: {tag} {timeline.tags[tag]}")
        say(f"Written: {', '.join(str(file) for file in files)}")
        found.append((replace(timeline, attention=None), arguments.out / f"{name}.html"))
    if index and found:
        index_page(index, found, failed)
        say(f"All of them: {index}")
    if failed:
        complain(f"{len(failed)} of {len(arguments.videos)} videos failed")
    return OK if not failed else SOME_FAILED if found else BAD_INPUT


def _videos_of(paths: Sequence[Path]) -> list[Path]:
    """The videos that were named, those of a folder in its place; tells what of it was left out."""
    from avel.features.folders import in_words, videos_in

    videos: list[Path] = []
    left_out: dict[Path, str] = {}
    for path in paths:
        there, others = videos_in(path) if os.path.isdir(path) else ([path], {})
        videos += there
        left_out |= others
    if left_out:
        complain(in_words(left_out))
    return videos


def _refuse_two_ways(arguments: Namespace) -> None:
    """AvelError unless there is one of --model and --labels, without options of the other."""
    ways = {"model": ("visual_weights", "audio_weights"), "labels": ("clip", "clap")}
    given = [way for way in ways if arguments[way] is not None]
    if len(given) != 1:
        raise AvelError(
            "both --model and --labels" if given else "neither --model nor --labels",
            "one of them: a model finds the classes it was trained on, CLIP and CLAP find any labels",
            'give --model RUN, or --labels "dog barking, church bell"',
        )
    for way, options in ways.items():
        for option in options:
            if way not in given and arguments[option] is not None:
                option = option.replace("_", "-")
                raise AvelError(f"--{option} beside --{given[0]}", f"--{option} with --{way}", f"leave out --{option}")


def _by_model(arguments: Namespace) -> tuple[Callable[..., Timeline], dict[str, Any]]:
    """What makes a timeline of a video by a trained model, and what tells the model from others."""
    from avel.checkpoint import best_seed, load
    from avel.localization import estimate_seconds, localizer, of_released_features

    run = best_seed(arguments.model)
    model = load(run, arguments.device)
    if run != arguments.model:
        say(f"{arguments.model} holds runs of several seeds; taken: {run.name}, the best where its epoch was chosen")
    say(f"{arguments.model} knows {len(model.classes)} classes: {', '.join(model.classes)}")
    weights = {kind: arguments[kind] for kind in ("visual_weights", "audio_weights")}
    made = {**weights, "device": arguments.device}
    if of_released_features(model):
        say(
            "trained on AVE's released features: VGG-19 and VGGish, with their published weights, make features of "
            "that kind, of tenths of the frames of every ten seconds (framing ave)"
        )
    seconds = estimate_seconds(arguments.videos, model, **made)
    if seconds > 10:
        console().print(f"about {clock(seconds)} of work")
    return localizer(model, **made), {"model": file_sha256(model.source)}


def _by_words(arguments: Namespace) -> tuple[Callable[..., Timeline], dict[str, Any]]:
    """What makes a timeline of a video by CLIP and CLAP, which are loaded once for all videos; and what tells them."""
    from avel.zero_shot import localize_words, parse_labels

    labels = parse_labels(arguments.labels)  # its mistakes first: what follows takes seconds, or a download
    from avel.features.huggingface import CLAP_WEIGHTS, CLIP_WEIGHTS, ClapAudio, ClipVision

    clip, clap = ClipVision(arguments.clip or CLIP_WEIGHTS), ClapAudio(arguments.clap or CLAP_WEIGHTS)
    say(f"looking and listening for: {'; '.join(labels)}")
    made_from = {"labels": labels, "clip": clip.tag, "clap": clap.tag}
    return partial(localize_words, labels=labels, clip=clip, clap=clap, device=arguments.device), made_from


@dataclass(frozen=True)
class Verb:
    """A verb: what it does, its options, an example with what that prints."""

    run: Callable[[Namespace], int]
    summary: str
    add_options: Callable[[ArgumentParser], Any]
    example: str


def _demo_options(parser: ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("demo"), help="Folder for everything the demo makes.")
    parser.add_argument("--clips", type=int, default=400, help="Clips to render.")
    parser.add_argument("--long_videos", type=int, default=2, help="Videos of 47 to 180 s to render and localize.")
    parser.add_argument("--epochs", type=int, default=32, help="Training epochs of each network.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the world and of the training.")
    _workers_option(parser)


def _render_options(parser: ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, help="Folder to write the videos and their CSVs to.")
    parser.add_argument("--clips", type=int, default=400, help="Clips of 10 s, split into train, val and test.")
    parser.add_argument("--long_videos", type=int, default=10, help="Videos of 47 to 180 s, with labels in long.csv.")
    parser.add_argument("--seed", type=int, default=0, help="The same seed gives the same labels, frames and sound.")
    _workers_option(parser)


def _import_ave_options(parser: ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="Folder with AVE's h5 files and Annotations.txt (docs/ave.md).")
    parser.add_argument("--out", type=Path, help="Feature store to write; a stopped one is resumed.")
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="Write nothing: say what is there, what is missing, and what that rules out.",
    )
    _workers_option(parser)


def _simulate_options(parser: ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, help="Folder for the files; a stopped one is resumed.")
    parser.add_argument("--videos", type=int, default=4143, help="Rows of Annotations.txt.")
    parser.add_argument("--grid", type=int, nargs=2, default=[7, 7], help="Cells of the visual features, H and W.")
    parser.add_argument("--visual_dim", type=int, default=512, help="Width of a visual feature.")
    for name in ("train", "val", "test"):
        help_text = f"Rows of the {name} split; left out, AVE's proportion."
        parser.add_argument(f"--{name}_videos", type=int, help=help_text)
    parser.add_argument("--background_videos", type=int, default=178, help="Videos of background alone.")
    parser.add_argument("--seed", type=int, default=0, help="The same seed gives the same files.")
    parser.add_argument(
        "--set_version",
        type=int,
        help="Version of the set: 1 makes the files of earlier work; left out, the newest (docs/simulated.md).",
    )
    _workers_option(parser)


def _check_options(parser: ArgumentParser) -> None:
    parser.add_argument("path", type=Path, help="A feature store, or a folder with AVE's files.")
    parser.add_argument("--window", type=int, default=10, help="Segments of the windows that a model would see.")


def _compare_options(parser: ArgumentParser) -> None:
    parser.add_argument("one", type=Path, help="A feature store.")
    parser.add_argument("other", type=Path, help="A store of the same clips; differences are relative to its features.")
    parser.add_argument("--worst", type=int, default=10, help="Number of the clips that differ most to print.")
    parser.add_argument("--out", type=Path, help="Folder to write comparison.json and comparison.png to.")
    parser.add_argument("--overwrite", action="store_true", help="Replace these files where they are there.")


def _export_h5_options(parser: ArgumentParser) -> None:
    parser.add_argument("store", type=Path, help="A feature store.")
    parser.add_argument("out", type=Path, help="Folder to write: new, empty, or an earlier export with --overwrite.")
    parser.add_argument(
        "--files", type=str, nargs="+", help="Names of the h5 files wanted, such as visual_feature.h5; left out, all."
    )
    parser.add_argument(
        "--dtype",
        choices=["float32", "float64"],
        default="float64",
        help="Of the features: float64 as AVE's own, which all published code reads; float32 holds the same values in "
        "half the room, for code that converts what it reads: AVEL's and PSP's does, CMRAN's and CMBS's does not.",
    )
    parser.add_argument(
        "--segments",
        type=int,
        help="Segments of a row; longer clips are cut into windows of that length. Left out, 10, and no clip is cut.",
    )
    parser.add_argument("--overwrite", action="store_true", help="Replace an earlier export, all of it.")


def _extract_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "source",
        type=Path,
        nargs="+",
        help="CSVs (video,start,end,label[,split]), or a folder, a media file, a .txt list, or AVE's Annotations.txt.",
    )
    parser.add_argument("--videos", type=Path, help="Folder of AVE's mp4 files, where SOURCE is its Annotations.txt.")
    parser.add_argument("--out", type=Path, required=True, help="Feature store to write; a stopped one is resumed.")
    parser.add_argument(
        "--extra_splits",
        type=str,
        nargs="+",
        default=[],
        help="Names in the column split beside train, val and test: their clips are kept, but not trained on.",
    )
    parser.add_argument("--visual", default="classical", help="Visual extractor: classical, vgg19 as AVE's, or clip.")
    parser.add_argument("--audio", default="classical", help="Audio extractor: classical, vggish as AVE's, or clap.")
    for kind, network, other in (("visual", "vgg19", "clip"), ("audio", "vggish", "clap")):
        help_text = f"Weights file of {network}, or folder of {other}; else the cache, or a download."
        parser.add_argument(f"--{kind}_weights", type=str, help=help_text)
    for kind, example in (("visual", "precision bfloat16"), ("audio", "framing continuous")):
        help_text = f"Options of the {kind} extractor, as in --{kind}_options.{example}; an unknown one is answered "
        help_text += "with the list of all."
        parser.add_argument(f"--{kind}_options", type=dict[str, Any], default={}, help=help_text)
    parser.add_argument("--segment_seconds", type=float, default=1.0, help="Length of a segment in seconds.")
    parser.add_argument(
        "--engine",
        choices=["local", "ray"],
        default="local",
        help="Run on this machine, or on the Ray cluster of RAY_ADDRESS (else one started here) with common storage.",
    )
    parser.add_argument(
        "--clip_seconds_limit",
        type=float,
        default=300.0,
        help="A clip that does not get on by a second of video in that many seconds has failed; the rest go on. Not "
        "with --workers 0.",
    )
    parser.add_argument(
        "--clip_memory_limit",
        type=float,
        default=2.0,
        help="A clip whose process holds more GiB of memory has failed; the rest go on. Not with --workers 0.",
    )
    parser.add_argument(
        "--framing",
        choices=["time", "ave"],
        default="time",
        help="Frames of a segment by their time, or as AVE's: tenths of the frames of clips of 9.5 to 10.5 s.",
    )
    parser.add_argument(
        "--frames_per_segment",
        type=int,
        help="Frames looked at in each segment: fewer take less time and see less; left out, 16 (clip: 4).",
    )
    parser.add_argument(
        "--missing_audio",
        choices=["error", "mark"],
        default="error",
        help="A video without sound is an error, or keeps its pictures and is marked: no training takes it.",
    )
    _stream_options(parser)
    _device_option(parser)
    _workers_option(parser)


def _train_options(parser: ArgumentParser) -> None:
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file with any of the options below.")
    parser.add_class_arguments(TrainConfig)
    parser.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        help="Several seeds, a run folder each under --out; mean and spread are printed.",
    )


def _evaluate_options(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=Path, nargs="+", help="Run folders of `avel train`, of one seed or of several.")
    parser.add_argument("--split", default="test", help="Split to score: train, val or test.")
    parser.add_argument("--store", type=Path, help="Where the store of the runs lies now, if it was moved.")
    _device_option(parser)
    parser.add_argument(
        "--against", type=Path, help="An evaluated run: print and write each run's difference to it, with its interval."
    )
    parser.add_argument(
        "--baselines",
        action="store_true",
        help="Score the trivial baselines, which know labels alone, and no run. RUN may also be a store or a folder of "
        "AVE's files.",
    )


def _localize_options(parser: ArgumentParser) -> None:
    parser.add_argument("videos", type=Path, nargs="+", help="Video files of any length, or folders of them.")
    parser.add_argument("--model", type=Path, help="Run folder of `avel train`, or its best.json: finds its classes.")
    parser.add_argument(
        "--labels",
        type=str,
        help="Instead of --model: words of your own, in English, with commas between them. Finds where CLIP sees and "
        "CLAP hears the same one. Needs avel[hf], and the weights of both (1.2 GB, downloaded on first use).",
    )
    for name, weights in (("clip", "openai/clip-vit-base-patch32"), ("clap", "laion/clap-htsat-unfused")):
        help_text = f"With --labels: weights of {name.upper()}, a folder or an id on the hub; left out, {weights}."
        parser.add_argument(f"--{name}", type=str, help=help_text)
    parser.add_argument("--out", type=Path, default=Path("localized"), help="Folder for JSON, CSV, subtitles, picture.")
    parser.add_argument(
        "--threshold",
        type=float,
        help="With --model: drop events whose mean probability is lower; left out, 0. With --labels: drop seconds in "
        "which picture or sound gives the label less; left out, 0.5.",
    )
    parser.add_argument("--min_seconds", type=float, default=0.0, help="Drop events that are shorter.")
    parser.add_argument("--truth", type=Path, help="CSV with the true events of these videos, drawn beside the found.")
    parser.add_argument(
        "--formats",
        nargs="+",
        choices=FORMATS,
        default=FORMATS[:5],
        help="What to write of each video: labels as JSON, CSV, WebVTT, Audacity, ELAN, Label Studio or sed_eval, a "
        "picture (png), a page (html). Left out, the first five.",
    )
    parser.add_argument("--overwrite", action="store_true", help="Replace files that an earlier run or you left there.")
    parser.add_argument("--html", action="store_true", help="Write a page that plays the clip, too.")
    _device_option(parser)
    for kind in ("visual", "audio"):
        help_text = f"With --model: where the weights of its {kind} features lie here; else the cache, or a download."
        parser.add_argument(f"--{kind}_weights", type=str, help=help_text)
    _stream_options(parser)


def _device_option(parser: ArgumentParser) -> None:
    help_text = "Where networks run: cpu, cuda, cuda:1 or mps; auto takes a GPU where there is one."
    parser.add_argument("--device", type=str, default="auto", help=help_text)


def _stream_options(parser: ArgumentParser) -> None:
    parser.add_argument("--video_stream", type=int, help="Which of several video streams, counted from 0; no covers.")
    parser.add_argument("--audio_stream", type=int, help="Which of several audio streams, counted from 0.")


def _workers_option(parser: ArgumentParser) -> None:
    help_text = "Processes or threads that share the work; left out, one per processor; 0 starts none."
    parser.add_argument("--workers", type=int, help=help_text)


VERBS: dict[str, Verb | dict[str, Verb]] = {
    "demo": Verb(
        demo,
        "Make clips, extract features, train CCLN, find events and draw them, all in one folder.",
        _demo_options,
        "  avel demo --out demo\n\nprints a table of networks and baselines, and the page to open: demo/index.html",
    ),
    "data": {
        "render": Verb(
            data_render,
            "Render real mp4 clips of audio-visual events, with the field's hard cases.",
            _render_options,
            "  avel data render --out world --clips 40\n\nprints: 40 clips, labels in world/clips.csv",
        ),
        "import-ave": Verb(
            data_import_ave,
            "Make a feature store of AVE's h5 files, as they were released or simulated.",
            _import_ave_options,
            "  avel data import-ave data --out ave\n\n"
            "prints what is odd about the files, and: 4321 clips in ave; AVE; task full: ready; ...",
        ),
        "simulate": Verb(
            data_simulate,
            "Make features in AVE's own layout, sizes and counts, with planted structure: simulated, not AVE.",
            _simulate_options,
            "  avel data simulate --out simulated --videos 400 --grid 4 4 --visual-dim 64\n\n"
            "prints rows, splits and size, and the import that comes next",
        ),
        "check": Verb(
            data_check,
            "Read a store or AVE's files once and say what is odd; exit code 1 where something is wrong.",
            _check_options,
            "  avel data check store\n\nprints a line per finding: ok, note or error, where, what",
        ),
        "compare": Verb(
            data_compare,
            "Compare the features of two stores of the same clips.",
            _compare_options,
            "  avel data compare own released --out comparison\n\n"
            "prints relative difference and correlation per stream, and the clips that differ most",
        ),
    },
    "extract": Verb(
        extract,
        "Decode videos and write their features as a store.",
        _extract_options,
        "  avel extract world/clips.csv --out store\n\nprints: 40 clips extracted, 0 were there already: store\n\n"
        "A clip that is broken, crashes its process or goes over a limit is listed in store/failures.jsonl with its\n"
        "cause, and the exit code is 1. Run the same command again after a kill: finished clips are kept.",
    ),
    "export-h5": Verb(
        export_h5,
        "Write a feature store as h5 files in AVE's layout, which other people's code reads.",
        _export_h5_options,
        "  avel export-h5 store h5\n\n"
        "prints: 4143 rows and 178 of background alone, 28 classes, 8.9 GB in h5, and the files' names\n\n"
        "  h5py.File('h5/visual_feature.h5')['avadataset'][:]\n\n"
        "is then (N, 10, 7, 7, 512) in the order of Annotations.txt",
    ),
    "train": Verb(
        train,
        "Train a model on a feature store.",
        _train_options,
        "  avel train --config configs/rendered_full_ccln.yaml --store store --out runs/ccln --seeds 0 1 2\n\n"
        "prints each seed's accuracy on the validation split, their mean and spread, and the run folders",
    ),
    "evaluate": Verb(
        evaluate,
        "Score a trained run on a split.",
        _evaluate_options,
        "  avel evaluate runs/ccln --split test\n\n"
        "prints segment accuracy with its interval, event F1, recall per class and the trivial baselines; in task cml\n"
        "A2V and V2A, joint and strict\n\n"
        "  avel evaluate runs/one runs/other --split test --against runs/ccln\n\n"
        "prints a table of the runs, mean and spread, and how far each is from runs/ccln\n\n"
        "  avel evaluate store --baselines\n\nprints what the trivial baselines score, such as all background",
    ),
    "localize": Verb(
        localize,
        "Find the events in videos of any length.",
        _localize_options,
        "  avel localize clip.mp4 --model runs/ccln/seed-0 --html\n\n"
        "prints the timeline and writes localized/clip.json, .csv, .vtt, .txt, .png and .html\n\n"
        '  avel localize clip.mp4 --labels "dog barking, church bell, train horn"\n\n'
        "prints and writes the same for labels that no model was trained on",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what the terminal's encoding lacks is written out, as \u4f1a
            stream.reconfigure(errors="backslashreplace")
    words = [*(sys.argv[1:] if argv is None else argv)]
    options = words[: words.index("--")] if "--" in words else words
    try:
        _refuse_dashed_names(options)
    except AvelError as error:
        complain(f"avel: {error}")
        return BAD_INPUT
    words = [*map(_underscored, options), *words[len(options) :]]
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    set_loader("yaml", _value, exceptions=(yaml.YAMLError,))
    parser = _parser(prog="avel", description="Find, second by second, what in a video is both seen and heard.")
    parser.add_argument("--version", action="version", version=f"avel {avel.__version__}")
    _add_verbs(parser, VERBS, words)
    if not words or (len(words) == 1 and isinstance(VERBS.get(words[0]), dict)):  # `avel`, `avel data`: what there is
        words.append("--help")
    try:
        arguments = parser.parse_args(words)
    except UnicodeDecodeError as error:  # of a --config
        parser.error(f"the file given by --config is not in UTF-8: {error}")
    verb: Verb | dict[str, Verb] = VERBS[arguments.verb]
    chosen = arguments[arguments.verb]
    if isinstance(verb, dict):
        verb, chosen = verb[chosen.verb], chosen[chosen.verb]
    try:
        with _notices():
            if chosen.get("out") is not None:
                check_folder(chosen.out)
            return verb.run(chosen)
    except (AvelError, OSError) as error:
        if isinstance(error, OSError) and error.errno is None:  # not of a file or disk
            raise
        with suppress(AvelError, OSError):  # standard error may be what fails
            complain(f"avel: {_told_of_disk(error) if isinstance(error, OSError) else error}")
        return BAD_INPUT
    except KeyboardInterrupt:
        complain("stopped; run the same command again to go on from here")
        return INTERRUPTED


def _told_of_disk(error: OSError) -> AvelError:
    """What the disk answered, as an error of ours."""
    places = " and ".join(os.fsdecode(name) for name in (error.filename, error.filename2) if name is not None)
    return AvelError(
        f"{error.strerror}: {places}" if places else f"{error.strerror}",
        "files and folders that can be read and written",
        "check their permissions and the disk",
    )


@contextmanager
def _notices() -> Iterator[None]:
    """Tell notices as a line, without the place in the code that a warning names."""
    with warnings.catch_warnings():
        shown = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
            if issubclass(category, AvelNotice):
                complain(f"note: {message}")
            else:
                shown(message, category, *place, **more)

        warnings.showwarning = show
        yield


def _add_verbs(parser: ArgumentParser, verbs: dict[str, Any], words: Sequence[str]) -> None:
    """Add the verbs, but build the options of the one that was asked for only: building all takes too long."""
    subcommands = parser.add_subcommands(dest="verb", metavar="VERB", title="verbs")
    for name, verb in verbs.items():
        asked = name in words
        if isinstance(verb, dict):
            child = _parser(description=f"Make data sets: {', '.join(verb)}.")
            subcommands.add_subcommand(name, child, help=f"Make data sets: {', '.join(verb)}.")
            if asked:
                _add_verbs(child, verb, words)
            continue
        child = _parser(description=verb.summary, epilog=f"example:\n{verb.example}")
        if asked:
            verb.add_options(child)
        subcommands.add_subcommand(name, child, help=verb.summary)


class _Parser(ArgumentParser):
    """A parser whose complaints about a word cannot change the terminal."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        super().error(visible(message, keep_lines=True), ex)


class _HelpFormatter(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of the example, and spells options with dashes."""

    def format_help(self) -> str:
        text: str = re.sub(r"--[a-z_]+", lambda match: match[0].replace("_", "-"), super().format_help())
        return re.sub(r"<class\s+'Path'>", "path", text)


def _parser(**settings: Any) -> ArgumentParser:
    return _Parser(formatter_class=_HelpFormatter, **settings)


def _refuse_dashed_names(words: Sequence[str]) -> None:
    """AvelError where a word is a file's name that would be taken for an option, as a shell makes of ``*.mp4``."""
    for word in words:
        with suppress(ValueError):
            float(word)  # such as -1
            continue
        long = word.startswith("--")
        name = os.path.lexists(word) and not re.fullmatch(r"--[a-z][a-z_-]*", word) if long else word[:1] == "-"
        if name and word not in ("-", "-h"):
            raise AvelError(
                f"{word} begins with a dash, as an option does, and is none",
                "`--` before names that begin with a dash, or a path such as ./*.mp4",
                f"put the options first, then `--`, then the names; or write ./{word}",
            )


def _value(text: str) -> Any:
    """A value of the command line as jsonargparse reads it; a file name that is not UTF-8 can only be text."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text
    return _read_yaml(text)


def _underscored(word: str) -> str:
    """``--batch-size=3`` as jsonargparse knows it: ``--batch_size=3``."""
    match = re.match(r"--[a-z][a-z.-]*", word)
    return match[0][:2] + match[0][2:].replace("-", "_") + word[match.end() :] if match else word


def console(stderr: bool = False) -> Console:
    """The terminal. A string that is printed there is one line."""
    from avel.web import PlainConsole

    return PlainConsole(stderr=stderr)


def say(message: str) -> None:
    """Print to standard output."""
    console().print(message, soft_wrap=True)


def complain(message: str) -> None:
    """Print a message of one or more lines to standard error."""
    from rich.text import Text

    console(stderr=True).print(Text(message), soft_wrap=True)


@contextmanager
def bars() -> Iterator[Progress]:
    """A ``progress(stage, done, total)`` that draws one bar a stage, with the time left, on standard error."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    left = (TextColumn("left"), TimeRemainingColumn())
    # The time left is told from the last thousand steps, however long they took: rich would forget a step after thirty
    # seconds, and a clip or an epoch can take minutes.
    with Bars(*columns, *left, speed_estimate_period=math.inf, console=console(stderr=True)) as drawn:
        tasks: dict[str, Any] = {}

        def progress(stage: str, done: int, total: int) -> None:
            task = drawn.tasks[tasks[stage]] if stage in tasks else None
            if task is None or (task.finished and done < total):
                # What was done before is no work of this run: the time left must not be told from it.
                tasks[stage] = drawn.add_task(stage, total=total, completed=done)
            drawn.update(tasks[stage], completed=done, total=total)

        yield progress


@contextmanager
def training_bars() -> Iterator[Report]:
    """A ``report`` of training: a bar a seed with loss, accuracy and the time left, on standard error.

    Where that is no terminal, a line at the end of each epoch instead, and one a minute within it.
    """
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    terminal = console(stderr=True)
    if not terminal.is_terminal or terminal.is_dumb_terminal:
        yield training_lines(complain)
        return
    columns = (TextColumn("{task.description}"), BarColumn(20), TaskProgressColumn(), TimeElapsedColumn())
    left = (TextColumn("left"), TimeRemainingColumn())
    with Bars(*columns, *left, speed_estimate_period=math.inf, console=terminal) as drawn:
        tasks: dict[int, Any] = {}

        def report(status: TrainStatus) -> None:
            done = status.epoch - 1 + status.done
            if status.seed not in tasks:
                began = int(done)  # epochs of an earlier call are no work of this one
                tasks[status.seed] = drawn.add_task("", total=status.epochs, completed=began)
            drawn.update(tasks[status.seed], completed=done, description=standing(status))

        yield report


def training_lines(tell: Callable[[str], None], now: Callable[[], float] = time.monotonic) -> Report:
    """A ``report`` of training that tells a line at the end of each epoch, and one a minute within it."""
    began: dict[int, tuple[float, float]] = {}  # seed -> epochs done, and the time, at its first report
    told = now()

    def report(status: TrainStatus) -> None:
        nonlocal told
        done, at = status.epoch - 1 + status.done, now()
        first, since = began.setdefault(status.seed, (done, at))
        if status.done < 1 and at - told < SECONDS_BETWEEN_LINES:
            return
        told = at
        left = f", {clock((at - since) / (done - first) * (status.epochs - done))} left" if done > first else ""
        tell(standing(status) + left)

    return report


def standing(status: TrainStatus) -> str:
    """``seed 0, epoch 3/60, loss 1.2345, accuracy 0.5810, best 0.5900 at epoch 2``."""
    share = f" ({status.done:.0%})" if status.done < 1 else ""
    text = f"seed {status.seed}, epoch {status.epoch}/{status.epochs}{share}, loss {status.loss:.4f}"
    if status.accuracy is None or status.best_accuracy is None:
        return text
    return f"{text}, accuracy {status.accuracy:.4f}, best {status.best_accuracy:.4f} at epoch {status.best_epoch}"


def clock(seconds: float) -> str:
    """``45 s``, ``3 min``, ``1 h 20 min``."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def mean_and_spread(values: Sequence[float]) -> str:
    """``0.871 +- 0.012``: mean and sample standard deviation; the mean alone where there is one value."""
    from statistics import mean, stdev

    return f"{mean(values):.3f} +- {stdev(values):.3f}" if len(values) > 1 else f"{values[0]:.3f}"


def print_spread(measures: dict[str, list[float]], title: str | None = None) -> None:
    """A table of measures: mean, spread and every seed's value."""
    from rich.table import Table

    table = Table("measure", "mean +- spread", "each seed", title=title)
    for name, values in measures.items():
        table.add_row(name, mean_and_spread(values), "  ".join(f"{value:.3f}" for value in values))
    console().print(table)
