"""Several runs on one split: each scored over its seeds and compared with another on the same clips.

Everything that can be wrong with a run or a comparison is checked before anything is scored.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from avel import devices
from avel.checkpoint import read_description
from avel.cml import DIRECTIONS, MODES
from avel.data.loader import task_split
from avel.data.store import Store
from avel.errors import AvelError
from avel.evaluation import OpenRun, open_run, read_predictions, score_run
from avel.files import refuse_foreign_json, write_file
from avel.metrics import Interval, labels_of, paired_interval
from avel.reading import read_json
from avel.runs import RunFacts, run_facts, seeds_of, store_of
from avel.types import Progress


@dataclass(frozen=True)
class Scores:
    """The scores of a run, over its seeds.

    Attributes:
        run: the folder as given, of one seed or several.
        folders: the run folder of each seed.
        each: the content of each seed's ``evaluation_<split>.json``.
        against: the run it was compared with, if any.
        difference: this run's accuracy minus the other's, with its 95% interval over videos and seeds.
        compared: number of clips in the comparison.
        written: the files written for all seeds together.
    """

    run: Path
    folders: list[Path]
    each: list[dict[str, Any]]
    against: Path | None
    difference: Interval | None
    compared: int
    written: list[Path]

    @property
    def measures(self) -> dict[str, list[float]]:
        """The measures of the task: name -> the value for each seed."""
        first = self.each[0]
        if first["task"] == "cml":
            return {
                f"{mode} {direction.upper()}": [score[mode][direction] for score in self.each]
                for mode in MODES
                for direction in DIRECTIONS
            }
        found = {"segment accuracy": [score["segment_accuracy"] for score in self.each]}
        shared = first["without_shared_videos"]
        if shared:
            name = f"without {first['clips'] - shared['clips']} clips of training videos"
            found[name] = [score["without_shared_videos"]["segment_accuracy"] for score in self.each]
        return {**found, "event F1 at IoU 0.5": [score["event_f1"] for score in self.each]}

    @property
    def class_recall(self) -> dict[str, list[float]]:
        """Class -> the recall of each seed, in tasks full and weak; empty for a class that the split lacks."""
        names = self.each[0].get("class_recall", {})
        return {
            name: [score["class_recall"][name] for score in self.each if score["class_recall"][name] is not None]
            for name in names
        }


def evaluate_runs(
    runs: Sequence[str | Path],
    split: str = "test",
    *,
    against: str | Path | None = None,
    store: str | Path | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> list[Scores]:
    """Score runs on a split, each seed as in `avel.evaluate`, and compare each run with another.

    A folder of several seeds gets its own ``evaluation_<split>.json``: mean, sample standard deviation and every seed's
    value. With ``against``, each run gets ``comparison_<split>_<other>.json``.

    Args:
        runs: folders that `avel train` wrote, of one seed or several.
        split: train, val or test.
        against: another run: one of ``runs``, or one with predictions on the split already. Its store may have other
            features, but the split must have the same clips with the same labels.
        store: where the store of ``runs`` is now; None as in `avel.evaluate`.
        device: as in `avel.evaluate`.

    Returns:
        The scores of each run, in the order given.

    Raises:
        AvelError: a run cannot be scored (see `avel.evaluate`) or is named twice, the tasks of the runs are not scored
            alike, or the clips to compare on differ. Nothing has been scored then.
    """
    devices.device(device)  # reports a wrong device before any run is read
    folders = [Path(run) for run in runs]
    named = {folder.resolve() for folder in folders}
    if len(named) < len(folders):
        raise AvelError("a run is named twice", "each run once", "leave one of them out")
    opened = {folder: [open_run(seed, split, device, store) for seed in seeds_of(folder)] for folder in folders}
    every = [run for seeds in opened.values() for run in seeds]
    for run in every[1:]:
        _check_alike(every[0], run.folder, run.facts)
    for first, *seeds in opened.values():
        for run in seeds:
            _check_clips(first, run.folder, run.facts, split)
    other = None if against is None else Path(against)
    if other is not None:
        for seed in seeds_of(other):
            facts = run_facts(seed)
            if not any(_same(seed, run.folder) for run in every):
                _check_predictions(seed, split)
            for run in every:
                _check_alike(run, seed, facts)
                _check_clips(run, seed, facts, split)
    for folder in opened:
        refuse_foreign_json(folder / f"evaluation_{split}.json", {"run", "split"})
        if other is not None:
            refuse_foreign_json(folder / f"comparison_{split}_{_other_name(folder, other)}.json", {"run", "against"})
    each = {folder: [score_run(run, split, progress=progress) for run in seeds] for folder, seeds in opened.items()}
    return [
        _summarize(folder, [run.folder for run in opened[folder]], each[folder], split, other) for folder in folders
    ]


def _summarize(run: Path, folders: list[Path], each: list[dict[str, Any]], split: str, against: Path | None) -> Scores:
    """Summarize the seeds of a run, compare it with the other, and write both results."""
    difference, compared, written = None, 0, []
    if against is not None:
        difference, compared = compare_runs(folders, seeds_of(against), split)
        written.append(run / f"comparison_{split}_{_other_name(run, against)}.json")
    scores = Scores(run, folders, each, against, difference, compared, written)
    if folders != [run]:
        first = each[0]
        content = {
            "run": str(run),
            **{key: first[key] for key in ("model", "task", "split", "data", "selected_on", "clips")},
            "seeds": [score["seed"] for score in each],
            "spread_is": "sample standard deviation over the seeds",
            "measures": {name: _spread(values) for name, values in scores.measures.items()},
            "class_recall": {name: _spread(values) for name, values in scores.class_recall.items()},
            "baselines": first["baselines"],
        }
        written.insert(0, run / f"evaluation_{split}.json")
        write_file(written[0], json.dumps(content, indent=1))
    if difference is not None:
        assert against is not None
        content = {
            "run": str(run),
            "against": str(against),
            "split": split,
            "measure": "mean of A2V and V2A, each run in the mode it was trained in"
            if each[0]["task"] == "cml"
            else "segment accuracy",
            "difference": difference.value,
            "interval_95": [difference.low, difference.high],
            "interval_is": "of resampled videos and seeds",
            "clips": compared,
            "weights_sha256": {
                str(seed): _evaluation(seed, split)["weights_sha256"] for seed in [*folders, *seeds_of(against)]
            },
        }
        write_file(written[-1], json.dumps(content, indent=1))
    return scores


def _spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, sample standard deviation and every value; None for the mean of none, or the deviation of one."""
    return {
        "mean": mean(values) if values else None,
        "spread": stdev(values) if len(values) > 1 else None,
        "each": list(values),
    }


def _other_name(run: Path, other: Path) -> str:
    """The other run's path relative to this run's parent folder, as part of a file name."""
    name = os.path.relpath(other.resolve(), run.resolve().parent).replace(os.sep, "-")
    return name if len(os.fsencode(name)) < 150 else hashlib.sha256(os.fsencode(name)).hexdigest()[:16]


def _check_alike(run: OpenRun, other: Path, facts: RunFacts) -> None:
    """AvelError unless both runs are scored the same way."""
    tasks = run.facts.config["task"], facts.config["task"]
    if (tasks[0] == "cml") != (tasks[1] == "cml"):
        raise AvelError(
            f"{run.folder} was trained in task {tasks[0]}, {other} in task {tasks[1]}",
            "tasks that are scored alike: full and weak by segments, cml by the events found",
            "name runs of one kind",
        )
    windows = run.facts.config["window"], facts.config["window"]
    if tasks[0] == "cml" and windows[0] != windows[1]:
        raise AvelError(
            f"{run.folder} was trained on windows of {windows[0]} segments, {other} on windows of {windows[1]}",
            "windows of one length in task cml: events are looked for inside a window",
            "name runs with the same --window",
        )


def _check_clips(run: OpenRun, other: Path, facts: RunFacts, split: str) -> None:
    """AvelError unless both runs have the same clips in the split, with the same labels."""
    if run.store.checksum == facts.store_checksum:
        return
    store = store_of(other, facts)
    mine, others = _labels(run.store, run.clips), _labels(store, task_split(store, split, facts.config["task"]))
    if [*mine.items()] == [*others.items()]:
        return
    only = sorted(mine.keys() ^ others.keys())
    if only:
        where = run.store.path if only[0] in mine else store.path
        what = f"{len(mine)} clips against {len(others)}; {only[0]!r} is only in {where}"
    elif list(mine) != list(others):
        what = "the same clips in another order"
    else:
        what = f"other labels for {next(clip for clip in mine if mine[clip] != others[clip])!r}"
    raise AvelError(
        f"{run.folder} was trained on {run.store.path}, {other} on {store.path}, and their split {split} is not the "
        f"same: {what}",
        "two runs on one split: the same clips with the same labels, whatever the features",
        "compare runs that were trained on the same store, or on stores from one CSV",
    )


def _labels(store: Store, clips: Sequence[int]) -> dict[str, list[str]]:
    """Clip id -> the label of every segment."""
    names = [*store.classes, ""]
    return {store.clips[index].id: [names[label] for label in store.labels(index).tolist()] for index in clips}


def _check_predictions(run: Path, split: str) -> None:
    """AvelError unless a run has predictions of its current weights."""
    file = _predictions(run, split)
    found = _evaluation(run, split).get("weights_sha256")
    if found != read_description(run / "best.json").weights_sha256:
        raise AvelError(
            f"{file} was made with other weights than {run / 'best.json'}: {run} was trained further since",
            "predictions of the current weights",
            f"run `avel evaluate {run} --split {split}` first",
        )


def _predictions(run: Path, split: str) -> Path:
    file = run / f"predictions_{split}.npz"
    if not file.is_file():
        raise AvelError(
            f"no {file.name} in {run}",
            "predictions of both runs on the same split",
            f"run `avel evaluate {run} --split {split}` first",
        )
    return file


def _evaluation(run: Path, split: str) -> dict[str, Any]:
    """The content of a run's ``evaluation_<split>.json``; empty if there is none."""
    file = run / f"evaluation_{split}.json"
    do = f"run `avel evaluate {run} --split {split}` again"
    try:
        return read_json(file, dict[str, Any], folder=run, expected="the file that avel wrote", do=do)
    except FileNotFoundError:
        return {}


def _same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()


def compare_runs(one: Sequence[str | Path], other: Sequence[str | Path], split: str = "test") -> tuple[Interval, int]:
    """How much better one model is than another on the same videos, from the predictions `evaluate` saved.

    In task cml it takes both directions together, each run in the mode it was trained in.

    Args:
        one, other: run folders, one per seed.
        split: the split both were evaluated on.

    Returns:
        Difference of their accuracies, one - other, with its 95% interval over videos and seeds; number of clips.

    Raises:
        AvelError: a run has no predictions for the split, their tasks are not scored alike, or their clips differ.
    """
    files = [[_predictions(Path(run), split) for run in runs] for runs in (one, other)]
    saved = {file: read_predictions(file.parent, split) for of_one in files for file in of_one}
    first = saved[files[0][0]]
    for file, found in saved.items():
        if ("probabilities" in found) != ("probabilities" in first):
            raise AvelError(
                f"{file} and {files[0][0]} come from tasks that are not scored alike",
                "two runs of tasks full or weak, or two of task cml",
                "compare with another run",
            )
        if found["clip"].tolist() != first["clip"].tolist():
            raise AvelError(
                f"{file} predicts other clips than {files[0][0]}",
                "two runs on one split of one store",
                "compare runs that were trained and evaluated on the same store",
            )
    tables = [np.array([_right_and_asked(saved[file]) for file in of_one]).swapaxes(0, 1) for of_one in files]
    return paired_interval(*tables[0], *tables[1]), len(first["clip"])


def _right_and_asked(saved: Any) -> tuple[np.ndarray, np.ndarray]:
    """(N,) correct and (N,) counted in each clip: its segments, or its event in both directions."""
    if "probabilities" in saved:
        right = labels_of(saved["probabilities"]) == saved["labels"]
        starts = np.cumsum(saved["segments"]) - saved["segments"]
        return np.add.reduceat(right, starts, dtype=np.int64), saved["segments"]
    hits = sum(saved[f"{saved['trained_mode']}_{direction}"].astype(np.int64) for direction in DIRECTIONS)
    return hits, np.full(len(hits), 2)
