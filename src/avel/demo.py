"""The demo: in one folder, it renders clips, extracts features, trains networks, and finds and draws events."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from avel.baselines import logistic_regression, nearest_class_mean
from avel.checkpoint import load
from avel.config import TrainConfig
from avel.data.store import Store, open_store
from avel.data.table import read_table
from avel.errors import AvelError
from avel.evaluation import IOU, choose_threshold, evaluate, predict
from avel.features.extract import extract
from avel.files import check_folder, claim_folder, refuse_foreign, write_file
from avel.localization import localize
from avel.metrics import EventCounts, event_counts, event_f1, labels_to_spans
from avel.plots import class_bars
from avel.present import FINGERPRINT, USUAL_FORMATS, fingerprint, finished, present
from avel.training import train
from avel.types import BACKGROUND, Progress
from avel.web import demo_page
from avel.workers import worker_count
from avel.worlds.rendered.render import check_numbers, plan_world, render

if TYPE_CHECKING:
    from rich.table import Table

#: The same network three times: on both streams, and on either alone.
NETWORKS: dict[str, Literal["both", "audio", "visual"]] = {
    "CCLN": "both",
    "CCLN, audio only": "audio",
    "CCLN, visual only": "visual",
}
WIDTH = 128  # D: half the model's default, enough for ten classes and twice as fast
MIN_SECONDS = 2.0  # no event of the rendered world is shorter
FORMAT = "avel-demo"  # what demo.json says from the start
TITLE = "Held-out rendered clips: their scenes, instances and voices do not occur in training"


@dataclass(frozen=True)
class Row:
    """One line of the demo's table, on the test split.

    Attributes:
        name: the network or baseline.
        segment_accuracy: share of segments with the right label, background included.
        event_f1: F1 of events at IoU 0.5.
    """

    name: str
    segment_accuracy: float
    event_f1: float


@dataclass(frozen=True)
class DemoResult:
    """What the demo made.

    Attributes:
        rows: the table.
        long_f1: event F1 at IoU 0.5 over the long videos; None if none was made.
        threshold: score below which events are dropped, chosen on validation.
        seconds: wall seconds of each stage; in a resumed demo, of what was left to do.
        page: the page to open.
        model: run folder of CCLN.
    """

    rows: list[Row]
    long_f1: float | None
    threshold: float
    seconds: dict[str, float]
    page: Path
    model: Path

    def table(self) -> Table:
        """The table for a terminal."""
        from rich.table import Table

        table = Table("", "segment accuracy", f"event F1 (IoU {IOU})", title=TITLE)
        for row in self.rows:
            table.add_row(row.name, f"{row.segment_accuracy:.3f}", f"{row.event_f1:.3f}")
        if self.long_f1 is not None:
            table.add_row("CCLN on the long videos", "", f"{self.long_f1:.3f}")
        return table


def demo(
    out: Path,
    *,
    clips: int = 400,
    long_videos: int = 2,
    epochs: int = 32,
    seed: int = 0,
    workers: int | None = None,
    progress: Progress | None = None,
) -> DemoResult:
    """Render, extract, train, evaluate, localize and draw, skipping each step that is done already.

    Args:
        out: folder for everything.
        clips: clips of 10 s to render, split into train, val and test.
        long_videos: videos of 47 to 180 s to render and localize.
        epochs: training epochs of each network.
        seed: of the world and of the training.
        workers: processes; None for one per processor, 0 for none: all is done in this process.
        progress: called as ``progress(stage, done, total)``.

    Raises:
        AvelError: the folder holds a demo with other settings, or files that no demo wrote or that were changed since,
            the disk is full, or the clips are so few that no training clip shows some class.
    """
    worker_count(workers)
    check_numbers(clips, long_videos)
    _refuse_few(clips, seed)
    check_folder(out)
    _claim(out)
    seconds: dict[str, float] = {}
    clock = _Clock(seconds)
    table = render(out / "world", clips=clips, long_videos=long_videos, seed=seed, workers=workers, progress=progress)
    clock("render")
    extract(table, out / "store", workers=workers, progress=progress)
    clock("extract")
    store = open_store(out / "store")

    rows, recalls, runs = [], {}, {}
    for name, streams in NETWORKS.items():
        run = out / "runs" / name.lower().replace(", ", "-").replace(" ", "-")
        config = TrainConfig(
            store=out / "store",
            out=run,
            epochs=epochs,
            batch_size=16,
            feature_noise=0.5,
            seed=seed,
            streams=streams,
            options={"width": WIDTH},
        )
        train(config, progress=_named(progress, f"train {name}"))
        scores = evaluate(run, "test", progress=_named(progress, f"test {name}"))
        rows.append(Row(name, scores["segment_accuracy"], scores["event_f1"]))
        recalls[name] = np.array([np.nan if value is None else value for value in scores["class_recall"].values()])
        runs[name] = run
        clock(f"train {name}")
    rows += baselines(store)
    clock("baselines")

    model = load(runs["CCLN"])
    threshold = choose_threshold(predict(model, store, store.split("val")), store, min_seconds=MIN_SECONDS)
    by_id = {clip.id: clip for clip in read_table(table)}
    held_out = [by_id[store.clips[index].id] for index in first_of_each_class(store, 4)]
    long = read_table(out / "world" / "long.csv") if long_videos else []
    found, shown = EventCounts(), []
    for done, clip in enumerate([*long, *held_out]):
        if progress:
            progress("localize", done, len(long) + len(held_out))
        folder = out / ("long" if done < len(long) else "clips")
        timeline = localize(clip.path, model, threshold=threshold, min_seconds=MIN_SECONDS)
        tags = {**timeline.tags, FINGERPRINT: fingerprint(clip.path, folder)}
        timeline = replace(timeline, truth=clip.spans, tags=tags)
        formats = (*USUAL_FORMATS, "html")
        finished(clip.path, folder, clip.path.stem, formats, None)  # files of an earlier demo, unless they were changed
        files = present(timeline, folder, clip.path.stem, formats, overwrite=True)
        if done < len(long):
            found += event_counts(clip.spans, timeline.events, IOU)
        else:
            shown.append((timeline, clip.path, next(file for file in files if file.suffix == ".png")))
    if progress:
        progress("localize", len(long) + len(held_out), len(long) + len(held_out))
    clock("localize")

    class_bars(recalls, (*store.classes, BACKGROUND), out / "classes.png")
    long_f1 = event_f1(found) if long_videos else None
    result = DemoResult(rows, long_f1, threshold, seconds, out / "index.html", runs["CCLN"])
    plots = runs["CCLN"] / "plots"
    demo_page(
        result.page,
        title="avel demo",
        caption=TITLE,
        rows=rows,
        pictures={
            "curves": plots / "curves.png",
            "confusion": plots / "confusion_test.png",
            "bars": out / "classes.png",
        },
        clips=shown,
        facts={
            "classes": ", ".join(store.classes),
            "clips": f"{len(store.clips)} of 10 s: "
            + ", ".join(f"{len(store.split(s))} {s}" for s in ("train", "val", "test")),
            "seed": str(seed),
            "long videos": f"{long_videos}" + (f", event F1 {long_f1:.3f} at IoU {IOU}" if long_f1 is not None else ""),
            "events": f"at least {MIN_SECONDS:g} s, mean probability at least {threshold:g} (chosen on validation)",
        },
    )
    content: dict[str, Any] = (
        {"format": FORMAT} | asdict(result) | {"page": str(result.page), "model": str(result.model)}
    )
    write_file(out / "demo.json", json.dumps(content, indent=1))
    return result


def _refuse_few(clips: int, seed: int) -> None:
    """Refuse a world in which a clip of val or test shows a class that no training clip shows."""
    labels = {split: {span.label for plan in plan_world(seed, clips, 0) if plan.split == split for span in plan.spans}
              for split in ("train", "val", "test")}  # fmt: skip
    missing = sorted((labels["val"] | labels["test"]) - labels["train"])
    if missing:
        raise AvelError(
            f"of {clips} clips (seed {seed}), none in split 'train' shows {', '.join(map(repr, missing))}",
            "clips of every class to train on",
            f"render more, such as --clips {max(40, 2 * clips)}",
        )


def _claim(out: Path) -> None:
    """Mark a new or empty folder as a demo's; AvelError for any other that has no such mark."""
    mark = out / "demo.json"
    refuse_foreign(mark, lambda data: bool(json.loads(data)["format"] == FORMAT))
    if not claim_folder(out, mark.name, "a demo"):
        write_file(mark, json.dumps({"format": FORMAT}))


def baselines(store: Store) -> list[Row]:
    """The plain classifiers and two trivial baselines on the test split."""
    clips = store.split("test")
    truth = np.concatenate([store.labels(index).numpy() for index in clips])
    train_labels = np.concatenate([store.labels(index).numpy() for index in store.split("train")])
    background = len(store.classes)
    majority = int(np.bincount(train_labels[train_labels < background]).argmax())
    answers = {
        "logistic regression on both streams": logistic_regression(store, "test"),
        "nearest class mean, both streams agree": nearest_class_mean(store, "test"),
        "all background": np.full_like(truth, background),
        f"majority event class ({store.classes[majority]})": np.full_like(truth, majority),
    }
    rows = []
    for name, labels in answers.items():
        counts, first = EventCounts(), 0
        for index in clips:
            clip = store.clips[index]
            spans = labels_to_spans(labels[first : first + clip.segments], store.classes, store.segment_seconds)
            counts += event_counts(clip.spans or (), spans, IOU)
            first += clip.segments
        rows.append(Row(name, float((labels == truth).mean()), event_f1(counts)))
    return rows


def first_of_each_class(store: Store, number: int) -> list[int]:
    """The first test clips with an event, one per class: chosen by their order, not by their scores."""
    chosen: dict[str, int] = {}
    for index in store.split("test"):
        spans = store.clips[index].spans
        if spans:
            chosen.setdefault(spans[0].label, index)
    return list(chosen.values())[:number]


def _named(progress: Progress | None, stage: str) -> Progress | None:
    """The same progress under the name of what is being trained."""
    return None if progress is None else lambda _, done, total: progress(stage, done, total)


class _Clock:
    """Notes the seconds since the last stage ended."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds = seconds
        self.since = time.perf_counter()

    def __call__(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] = round(now - self.since, 1)
        self.since = now
