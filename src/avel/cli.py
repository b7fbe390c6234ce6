"""The command line: one small function per verb, each calling the public Python.

The options of a verb come from its signature and docstring, and from those of the Python that it calls; see
`avel.verbs`. What a verb prints is in `avel.console` and `avel.summaries`.

Exit codes: 0 all done, 1 some clips failed, 2 usage, bad input or a disk that fails, 130 Ctrl-C, 141 if the reader
of a pipe is gone, as `head` is after its lines.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from avel import cli_data
from avel.console import bars, clock, complain, console, drop_unwritten_output, notices, say, training_bars
from avel.errors import AvelError, error_of_disk
from avel.files import check_folder, file_sha256
from avel.text import counted, visible
from avel.verbs import BAD_INPUT, INTERRUPTED, OK, SOME_FAILED, ConfigFile, Verbs, parse, verb

if TYPE_CHECKING:  # imported inside the verbs that use them: `avel --help` must answer at once
    from avel.timeline import Timeline

WORTH_AN_ESTIMATE = 8  # clips; the estimate itself decodes two

Format = Literal["json", "csv", "vtt", "audacity", "png", "html", "elan", "label-studio", "sed-eval"]


@verb()
def demo(
    *,
    out: Path = Path("demo"),
    clips: int = 400,
    long_videos: int = 2,
    epochs: int = 32,
    seed: int = 0,
    workers: int | None = None,
) -> int:
    """Make clips, extract features, train CCLN, find events and draw them, all in one folder.

    Args:
        out: Folder for everything the demo makes. After a stop, the same command resumes the work.
        clips: Number of 10-second clips to render.
        long_videos: Number of longer videos (47 to 180 s) to render and localize.
        epochs: Training epochs of each network.
        seed: Seed of the rendered world and of the training.
        workers: Processes that share the work; by default one per processor; 0 starts none.

    Example:
        avel demo --out demo

        prints a table of networks and plain classifiers, and the page to open: demo/index.html
    """
    from avel.demo import MIN_SECONDS, demo

    with bars() as progress:
        result = demo(
            out, clips=clips, long_videos=long_videos, epochs=epochs, seed=seed, workers=workers, progress=progress
        )
    console().print(result.table())
    say(f"Open this page: {result.page}")
    options = f"--threshold {result.threshold:g} --min-seconds {MIN_SECONDS:g} --html"
    say(f"For a video of your own: avel localize VIDEO --model {result.model} {options}")
    return OK


@verb("avel.features.extract:extract", "avel.features.recipe:Recipe", skip=("streams",))
def extract(
    source: list[Path],
    *,
    out: Path,
    videos: Path | None = None,
    extra_splits: list[str] = [],  # noqa: B006 - read only
    workers: int | None = None,
    engine: Literal["local", "ray"] = "local",
    visual_weights: str | None = None,
    audio_weights: str | None = None,
    frames_per_segment: int | None = None,
    video_stream: int | None = None,
    audio_stream: int | None = None,
    **settings: Any,
) -> int:
    """Decode videos and write their features as a store.

    Args:
        source: CSVs (video,start,end,label[,split]), or one folder, media file, .txt list, or AVE's Annotations.txt.
        out: Feature store to write. After a stop, the same command resumes the work.
        visual_weights: Weights file of vgg19, or folder of clip; by default from the cache, or downloaded.
        audio_weights: Weights file of vggish, or folder of clap; by default from the cache, or downloaded.
        frames_per_segment: Number of frames that the visual extractor uses of each segment: fewer are faster but show
            less; by default 16, for clip 4.
        video_stream: Which video stream of a file with several, counted from 0; cover pictures do not count.
        audio_stream: Which audio stream of a file with several, counted from 0.

    Example:
        avel extract world/clips.csv --out store

        prints: 40 clips extracted, 0 already there: store

        A clip that is broken, crashes its process or exceeds a limit is listed in store/failures.jsonl with its
        cause, and the exit code is 1. If the command was killed, run it again: finished clips are kept.
    """
    from avel.features.estimate import estimate_seconds
    from avel.features.extract import extract
    from avel.features.folders import in_words
    from avel.features.recipe import Recipe, Streams
    from avel.features.sources import read_source
    from avel.summaries import print_extracted

    weights = {"visual": visual_weights, "audio": audio_weights}
    for kind, more in (("visual", {"frames_per_segment": frames_per_segment}), ("audio", {})):
        settings[f"{kind}_options"] = _extractor_options(kind, settings, weights[kind], more)
    recipe = Recipe(**settings, streams=Streams(video_stream, audio_stream))
    where: dict[str, Any] = {"videos": videos, "extra_splits": extra_splits}
    found = read_source(source, **where)
    number = len(found.clips)
    if found.left_out:
        complain(in_words(found.left_out))
    if number > WORTH_AN_ESTIMATE and not out.exists() and engine == "local":
        with suppress(AvelError):  # clips that cannot be read are for the extraction to report
            seconds = estimate_seconds(source, recipe, **where, workers=workers)
            say(f"{counted(number, 'clip')}, about {clock(seconds)} on this machine")
    with bars() as progress:
        report = extract(source, out, recipe, **where, engine=engine, workers=workers, progress=progress)
    print_extracted(report, number)
    if networks := [name for name in (recipe.visual, recipe.audio) if name != "classical"]:
        say(f"device: {' and '.join(networks)} ran on {report.device}")
    return SOME_FAILED if report.failed else OK


def _extractor_options(
    kind: str, settings: dict[str, Any], weights: str | None, more: dict[str, Any]
) -> dict[str, Any]:
    """Options of an extractor: those given by --KIND-options, and those that have an option of their own here."""
    from avel.features import weights_option

    options = weights_option(kind, settings[kind], weights)
    options |= {name: value for name, value in more.items() if value is not None}
    given: dict[str, Any] = settings[f"{kind}_options"]
    for name in options.keys() & given.keys():
        raise AvelError(
            f"--{kind}-options.{name} beside the option that says the same", f"{name} once", "leave out one of the two"
        )
    return {**options, **given}


@verb("avel.config:TrainConfig")
def train(*, config: ConfigFile | None = None, seeds: list[int] | None = None, **settings: Any) -> int:
    """Train a model on a feature store.

    Args:
        config: YAML file with any of the options below.
        seeds: Train once per seed, in a folder each under --out, and print mean and spread; by default --seed alone.

    Example:
        avel train --config configs/rendered_full_ccln.yaml --store store --out runs/ccln --seeds 0 1 2

        prints each seed's accuracy on the validation split, their mean and spread, and the run folders
    """
    from avel.baselines import full_name
    from avel.config import TrainConfig
    from avel.data.store import open_store
    from avel.summaries import print_spread
    from avel.training import train_seeds

    chosen = TrainConfig(**settings)
    seeds = seeds or [chosen.seed]
    with training_bars() as report:
        runs = train_seeds(chosen, seeds, notice=complain, report=report)
    if os.environ.get("RANK", "0") != "0":  # only one of torchrun's processes prints
        return OK
    measure = f"{chosen.select_on} {'mean of A2V and V2A' if chosen.task == 'cml' else 'accuracy'}"
    for run, seed in zip(runs, seeds, strict=True):
        say(f"seed {seed}: {measure} {run.best_accuracy:.4f} at epoch {run.best_epoch}: {run.folder}")
    if len(runs) > 1:
        print_spread({measure: [run.best_accuracy for run in runs]}, open_store(chosen.store).origin or None)
    for name, value in runs[0].baselines.items():
        say(f"trivial baseline on {chosen.select_on}, {full_name(name)}: {value:.4f}")
    say(f"Next: avel evaluate {chosen.out}")
    return OK


@verb()
def evaluate(
    run: list[Path],
    *,
    split: str = "test",
    store: Path | None = None,
    device: str = "auto",
    against: Path | None = None,
    baselines: bool = False,
) -> int:
    """Score a trained run on a split.

    Args:
        run: Run folders of `avel train`, with one seed or several.
        split: Split to score: train, val or test.
        store: Where the store of the runs is now, if it was moved.
        device: Where the model runs: cpu, cuda, cuda:1 or mps; auto takes a GPU if there is one.
        against: Another run, evaluated before. The difference of each run from it is printed and written, with
            its interval.
        baselines: Score the trivial baselines, which use labels only, instead of a run. RUN may also be a store or a
            folder of AVE's files.

    Example:
        avel evaluate runs/ccln --split test

        prints segment accuracy with its interval, event F1, recall per class and the trivial baselines; in task cml
        A2V and V2A, joint and strict

        avel evaluate runs/one runs/other --split test --against runs/ccln

        prints a table of the runs, mean and spread, and how far each is from runs/ccln

        avel evaluate store --baselines

        prints what the trivial baselines score, such as all background
    """
    from avel.summaries import print_baselines, print_scores

    if baselines:
        from avel import evaluation
        from avel.runs import seeds_of

        for path in run:
            print_baselines(evaluation.baselines(seeds_of(path)[0], split, store=store))
        return OK
    from avel.comparison import evaluate_runs

    with bars() as progress:
        scores = evaluate_runs(run, split, against=against, store=store, device=device, progress=progress)
    print_scores(scores)
    return OK


@verb("avel.localization:localize", skip=("streams", "failed"))
def localize(
    videos: list[Path],
    *,
    model: Path | None = None,
    labels: str | None = None,
    clip: str | None = None,
    clap: str | None = None,
    out: Path = Path("localized"),
    threshold: float | None = None,
    truth: Path | None = None,
    formats: list[Format] = ["json", "csv", "vtt", "audacity", "png"],  # noqa: B006 - read only
    html: bool = False,
    overwrite: bool = False,
    video_stream: int | None = None,
    audio_stream: int | None = None,
    **settings: Any,
) -> int:
    """Find the events in videos of any length.

    Args:
        videos: Video files of any length, or folders of them.
        model: Run folder of `avel train`, or its best.json. Finds the classes that the model was trained on.
        labels: Instead of --model: labels of your own, in English, with commas between them. Finds where CLIP sees and
            CLAP hears the same one. Needs avel[hf] and the weights of both (1.2 GB, downloaded on first use).
        clip: With --labels: weights of CLIP, a folder or an id on the hub; by default openai/clip-vit-base-patch32.
        clap: With --labels: weights of CLAP, a folder or an id on the hub; by default laion/clap-htsat-unfused.
        out: Folder for the files written.
        threshold: With --model: drop events whose mean probability is lower; by default 0. With --labels: drop segments
            in which the picture or the sound gives the label a lower probability; by default 0.5.
        truth: CSV with the true events of these videos, drawn beside those found.
        formats: What to write of each video: labels (json, csv, vtt, audacity, elan, label-studio, sed-eval), a picture
            (png), a page (html).
        html: Also write a page that plays the clip.
        overwrite: Replace files that are there already, your own too.
        video_stream: Which video stream of a file with several, counted from 0; cover pictures do not count.
        audio_stream: Which audio stream of a file with several, counted from 0.

    Example:
        avel localize clip.mp4 --model runs/ccln/seed-0 --html

        prints the timeline and writes localized/clip.json, .csv, .vtt, .txt, .png and .html

        avel localize clip.mp4 --labels "dog barking, church bell, train horn"

        prints and writes the same for labels that no model was trained on
    """
    from avel.data.table import read_truth
    from avel.features.recipe import Streams
    from avel.present import index_name, present_all
    from avel.summaries import print_localized
    from avel.web import check_index, index_page

    weights = {kind: settings.pop(kind) for kind in ("visual_weights", "audio_weights")}
    device = settings.pop("device")
    _refuse_two_ways({"model": (model, weights), "labels": (labels, {"clip": clip, "clap": clap})})
    files = _videos_of(videos)
    wanted = [*formats, *(["html"] if html else [])]
    index = None
    if "html" in wanted and (files != videos or len(files) > 1):
        index = out / index_name(files)
        check_index(index)
    labelled, told = read_truth(truth, files) if truth else ({}, [])
    for line in told:
        complain(visible(line))
    if model is not None:
        find, made_from = _by_model(model, files, **weights, device=device)
    else:
        find, made_from = _by_words(labels or "", clip, clap, device)
    if threshold is not None:  # --model and --labels have defaults of their own
        settings["threshold"] = threshold
    made_from |= settings | {"streams": [video_stream, audio_stream]}

    def find_one(video: Path) -> Timeline:
        with bars() as progress:
            return find(video, **settings, streams=Streams(video_stream, audio_stream), progress=progress)

    spans = {video: clip.spans for video, clip in labelled.items()}
    pages: list[tuple[Timeline, Path]] = []
    failed: list[tuple[str, str]] = []
    for one in present_all(files, find_one, out, wanted, made_from=made_from, truth=spans, overwrite=overwrite):
        print_localized(one)
        if one.error is not None:
            failed.append((str(one.video), one.error.found))
        if one.timeline is not None:
            pages.append((one.timeline, out / f"{one.name}.html"))
    if index and pages:
        index_page(index, pages, failed)
        say(f"All videos: {index}")
    if failed:
        complain(f"{len(failed)} of {counted(len(files), 'video')} failed")
    return OK if not failed else SOME_FAILED if pages else BAD_INPUT


def _videos_of(paths: Sequence[Path]) -> list[Path]:
    """The videos that were named, or that are in a folder that was named; prints which files were left out."""
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


def _refuse_two_ways(ways: dict[str, tuple[Any, dict[str, Any]]]) -> None:
    """Raise AvelError unless one of --model and --labels is given, without options of the other."""
    given = [way for way, (value, _) in ways.items() if value is not None]
    if len(given) != 1:
        raise AvelError(
            "both --model and --labels" if given else "neither --model nor --labels",
            "one of the two: a model finds the classes it was trained on; CLIP and CLAP find any labels",
            'give --model RUN, or --labels "dog barking, church bell"',
        )
    for way, (value, options) in ways.items():
        for option, chosen in options.items():
            if value is None and chosen is not None:
                option = option.replace("_", "-")
                raise AvelError(f"--{option} beside --{given[0]}", f"--{option} with --{way}", f"leave out --{option}")


def _by_model(path: Path, videos: Sequence[Path], **made: Any) -> tuple[Callable[..., Timeline], dict[str, Any]]:
    """The function that localizes a video by a trained model, and what that depends on."""
    from avel.checkpoint import best_seed, load
    from avel.localization import estimate_seconds, localizer, of_released_features

    run = best_seed(path)
    model = load(run, made["device"])
    if run != path:
        say(f"{path} holds runs of several seeds; using {run.name}, the best on the split that chose its epoch")
    say(f"{path} knows {counted(len(model.classes), 'class')}: {', '.join(model.classes)}")
    if of_released_features(model):
        say(
            "The model was trained on AVE's released features. VGG-19 and VGGish, with their published weights, make "
            "features of that kind, from tenths of the frames of every ten seconds (framing ave)."
        )
    seconds = estimate_seconds(videos, model, **made)
    if seconds > 10:
        say(f"about {clock(seconds)} of work")
    return localizer(model, **made), {"model": file_sha256(model.source)}


def _by_words(
    text: str, clip: str | None, clap: str | None, device: str
) -> tuple[Callable[..., Timeline], dict[str, Any]]:
    """The function that localizes labels by CLIP and CLAP, loaded once for all videos, and what that depends on."""
    from avel.zero_shot import localize_words, parse_labels

    labels = parse_labels(text)  # its mistakes first: what follows takes seconds, or a download
    from avel.features.huggingface import CLAP_WEIGHTS, CLIP_WEIGHTS, ClapAudio, ClipVision

    vision, audio = ClipVision(clip or CLIP_WEIGHTS), ClapAudio(clap or CLAP_WEIGHTS)
    say(f"labels to find: {'; '.join(labels)}")
    made_from = {"labels": labels, "clip": vision.tag, "clap": audio.tag}
    return partial(localize_words, labels=labels, clip=vision, clap=audio, device=device), made_from


VERBS: Verbs = {
    "demo": demo,
    "data": {
        "render": cli_data.render,
        "import-ave": cli_data.import_ave,
        "simulate": cli_data.simulate,
        "check": cli_data.check,
        "compare": cli_data.compare,
    },
    "extract": extract,
    "export-h5": cli_data.export_h5,
    "train": train,
    "evaluate": evaluate,
    "localize": localize,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what the terminal's encoding lacks is written out, as \u4f1a
            stream.reconfigure(errors="backslashreplace")
    try:
        with notices():
            run, chosen = parse(sys.argv[1:] if argv is None else argv, VERBS)
            if chosen.get("out") is not None:
                check_folder(chosen["out"])
            return run(**chosen)
    except (AvelError, OSError) as error:
        if isinstance(error, OSError) and error.errno is None:  # not of a file or disk
            raise
        with suppress(AvelError, OSError):  # standard error may be what fails
            complain(f"avel: {error_of_disk(error) if isinstance(error, OSError) else error}")
        drop_unwritten_output()
        return BAD_INPUT
    except KeyboardInterrupt:
        complain("stopped; run the same command again to go on from here")
        return INTERRUPTED
