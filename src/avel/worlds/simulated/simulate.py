"""A stand-in for AVE: simulated features in AVE's own files, with AVE's counts and with structure to be found.

It is not AVE: ``simulated.json`` beside the files says so, and so does the title of every table made from them.
`avel.worlds.simulated.plan` decides what every row holds, `avel.worlds.simulated.features` makes the numbers, and this
module writes the files. The *set version* names the rules; each version is frozen. So a row's content depends only on
the set version, the seed, the grid, the width and the plan.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import h5py
import msgspec
import numpy as np
from msgspec import Struct

import avel
from avel.data.ave.files import CLASSES, FEATURES, ORDER, SEGMENTS, SIMULATED_MARK, rows_file
from avel.errors import AvelError
from avel.files import claim_folder, file_sha256, remove_abandoned, replacing, require_space, write_file
from avel.reading import Count, Sha256, read_json
from avel.types import Progress
from avel.workers import in_threads, worker_count
from avel.worlds.simulated.features import (
    AUDIO_DIM,
    Floats,
    Scene,
    World,
    make_audio,
    make_scene,
    make_visual,
    make_world,
)
from avel.worlds.simulated.plan import BACKGROUND_VIDEOS, SPLITS, VERSION, VIDEOS, SimulatedPlan, plan

_SPARE = 1 << 20  # bytes of room asked for beyond the features: labels, orders, the head of each HDF5 file


@dataclass(frozen=True)
class SimulateReport:
    """What is in the folder now.

    Attributes:
        folder: where.
        rows: N, the lines of Annotations.txt.
        videos: how many different videos they show.
        background_videos: number of videos of background alone; they have no row.
        splits: name -> number of rows, of both families.
        match_classes: how many classes each split of the match family holds; in AVE 26, 3 and 28.
        background: share of the rows' segments that are background.
        bytes: of all files but the mark.
        made: the files that this call wrote.
        kept: the files that an earlier call had finished.
    """

    folder: Path
    rows: int
    videos: int
    background_videos: int
    splits: dict[str, int]
    match_classes: dict[str, int]
    background: float
    bytes: int
    made: tuple[str, ...]
    kept: tuple[str, ...]


def simulate(
    out: str | Path,
    *,
    videos: int = VIDEOS,
    grid: tuple[int, int] = (7, 7),
    visual_dim: int = 512,
    train_videos: int | None = None,
    val_videos: int | None = None,
    test_videos: int | None = None,
    background_videos: int = BACKGROUND_VIDEOS,
    seed: int = 0,
    version: int = VERSION,
    workers: int | None = None,
    progress: Progress | None = None,
) -> SimulateReport:
    """Write a simulated data set in AVE's own files: annotations, splits, labels, and the features of both streams.

    Visual features are (N, 10, H, W, Dv) and, averaged over the cells, (N, 10, Dv); audio is (N, 10, 128). All are
    float64 whose every value is exactly a float32, as AVE's are. At the default size they take 8.9 GB. A second call
    with the same numbers keeps the files that are finished.

    Args:
        out: the folder: new, empty, or holding the same simulation.
        videos: number N of rows of Annotations.txt, at least 3. Of 4143 rows, 45 videos have more than one, as in AVE.
        grid: cells of the visual features, H and W.
        visual_dim: width Dv of a visual feature.
        train_videos: rows of the training split; by default AVE's share of N.
        val_videos: rows of the validation split; by default AVE's share of N.
        test_videos: rows of the test split; by default AVE's share of N. With all three given, N is their sum.
        background_videos: number of videos of background alone (``*_noisy.h5``); 0 leaves these files out.
        seed: seed of the features. The same seed gives the same files.
        version: the set version: 2, or 1 for the files of earlier work (see `plan` for what differs).
        workers: threads that share the work; by default one per processor; 0 starts none. The files stay the same.
        progress: called as ``progress("simulate <file>", videos done, videos in all)``.

    Raises:
        AvelError: impossible numbers, too little room on the disk, or a folder that holds something else.
    """
    out = Path(out)
    _check_numbers(grid, visual_dim)
    threads = worker_count(workers)
    made_plan = plan(
        videos=videos,
        train_videos=train_videos,
        val_videos=val_videos,
        test_videos=test_videos,
        background_videos=background_videos,
        seed=seed,
        version=version,
    )
    options = {
        "videos": len(made_plan.classes),
        **{f"{name}_videos": len(made_plan.splits[name]) for name in SPLITS},
        "background_videos": background_videos,
        "grid": list(grid),
        "visual_dim": visual_dim,
    }
    mark = _claim(out, {"version": version, "seed": seed, "options": options})
    world = make_world(seed, (grid[0], grid[1]), visual_dim)
    shapes = feature_shapes(made_plan, world)
    jobs = _jobs(out, made_plan, world, shapes, threads, progress)
    waiting = {names: job for names, job in jobs.items() if not all(_finished(out, mark, name) for name in names)}
    names_waiting = tuple(name for names in waiting for name in names)
    needed = sum(8 * prod(shapes[name]) for name in names_waiting if name in shapes)
    if needed:
        do = "free some space, or ask for fewer videos, a smaller grid or a smaller visual width"
        require_space(out, needed + _SPARE, "the features", do)
    for names, job in waiting.items():
        job()
        mark["files"] |= {name: _fingerprint(out / name) for name in names}
        _write_mark(out, mark)
    return SimulateReport(
        folder=out,
        rows=len(made_plan.classes),
        videos=len(made_plan.ids),
        background_videos=background_videos,
        splits={name: len(rows) for name, rows in made_plan.splits.items()},
        match_classes=made_plan.match_classes(),
        background=float((made_plan.labels() == len(CLASSES)).mean()),
        bytes=sum(file["bytes"] for file in mark["files"].values()),
        made=names_waiting,
        kept=tuple(name for names in jobs for name in names if names not in waiting),
    )


def make_scenes(made_plan: SimulatedPlan, seed: int) -> tuple[list[Scene], list[Scene]]:
    """What happens in the video of every row, and in every video of background alone."""
    scenes = []
    for number, rows in enumerate(made_plan.video_rows()):
        labels, first = made_plan.classes[rows].tolist(), rows[0]  # the rows of a video share their seconds
        scenes.append(make_scene(seed, number, labels, int(made_plan.starts[first]), int(made_plan.ends[first])))
    background = [make_scene(seed, number, (), 0, 0) for number in range(made_plan.background_videos)]
    return [scenes[video] for video in made_plan.videos], background


def feature_shapes(made_plan: SimulatedPlan, world: World) -> dict[str, tuple[int, ...]]:
    """Shape of the array in each feature file; without videos of background alone, without their files."""
    rows, extra, width = len(made_plan.classes), made_plan.background_videos, world.visual.loadings.shape[1]
    shapes: dict[str, tuple[int, ...]] = {
        "audio_feature.h5": (rows, SEGMENTS, AUDIO_DIM),
        "audio_feature_noisy.h5": (extra, SEGMENTS, AUDIO_DIM),
        "visual_feature_noisy.h5": (extra, SEGMENTS, *world.grid, width),
        "visual_feature.h5": (rows, SEGMENTS, *world.grid, width),
        "visual_feature_vec.h5": (rows, SEGMENTS, width),
    }
    return {name: shape for name, shape in shapes.items() if shape[0]}


def _jobs(
    out: Path,
    made_plan: SimulatedPlan,
    world: World,
    shapes: dict[str, tuple[int, ...]],
    workers: int,
    progress: Progress | None,
) -> dict[tuple[str, ...], Callable[[], None]]:
    """The function that writes each group of files, the quick ones first. One pass writes the files of a group."""
    rows, background = make_scenes(made_plan, world.seed)

    def features(names: tuple[str, ...], scenes: Sequence[Scene], make: Callable[[World, Scene], Floats]) -> None:
        with ExitStack() as files:
            write = [files.enter_context(_feature_file(out / name, shapes[name])) for name in names]

            def make_row(row: int) -> None:
                values = make(world, scenes[row])
                write[0](row, values)
                if len(write) == 2:
                    write[1](row, values.mean((1, 2), dtype=np.float64).astype(np.float32))

            _in_threads(make_row, len(scenes), workers, f"simulate {names[0]}", progress)

    arrays = _small_arrays(made_plan)

    def small() -> None:
        write_file(out / "Annotations.txt", made_plan.annotations())
        for name, (key, array) in arrays.items():
            # Without HDF5's lock, which would wait for that of `replacing`.
            with replacing(out / name) as temporary, h5py.File(temporary, "w", locking=False) as file:
                file.create_dataset(key, data=array)

    audio = ("audio_feature.h5",)
    jobs: dict[tuple[str, ...], Callable[[], None]] = {
        ("Annotations.txt", *arrays): small,
        audio: lambda: features(audio, rows, make_audio),
    }
    if background:
        noisy_audio, noisy_visual = ("audio_feature_noisy.h5",), ("visual_feature_noisy.h5",)
        jobs[noisy_audio] = lambda: features(noisy_audio, background, make_audio)
        jobs[noisy_visual] = lambda: features(noisy_visual, background, make_visual)
    visual = ("visual_feature.h5", "visual_feature_vec.h5")
    jobs[visual] = lambda: features(visual, rows, make_visual)
    return jobs


def _small_arrays(made_plan: SimulatedPlan) -> dict[str, tuple[str, np.ndarray]]:
    """File -> key and array, of the labels and the splits."""
    one_hot = np.eye(len(CLASSES) + 1, dtype=np.float32)
    segments = made_plan.labels()
    arrays = {
        "labels.h5": (FEATURES, one_hot[segments]),
        "labels_closs.h5": (FEATURES, (segments < len(CLASSES)).astype(np.float32)),
        "mil_labels.h5": (FEATURES, one_hot[made_plan.classes]),
    }
    if made_plan.background_videos:
        arrays["labels_noisy.h5"] = (FEATURES, one_hot[[len(CLASSES)] * made_plan.background_videos])
    for name, order in made_plan.splits.items():
        split, _, match = name.partition("_")
        arrays[f"{split}_order{'_match' if match else ''}.h5"] = (ORDER, order.astype(np.int64))
    return arrays


@contextmanager
def _feature_file(path: Path, shape: tuple[int, ...]) -> Iterator[Callable[[int, Floats], None]]:
    """Give ``write(row, values)`` for an HDF5 file of one contiguous float64 array, replaced when all is written."""
    with replacing(path) as temporary, rows_file(temporary, shape, "float64") as write:
        yield write


def _in_threads(
    make_row: Callable[[int], None], count: int, workers: int, stage: str, progress: Progress | None
) -> None:
    """Make every row. NumPy releases the interpreter in its long loops, so threads are enough."""
    with closing(in_threads(make_row, range(count), workers)) as results:
        for done, _ in enumerate(results, start=1):
            if progress:
                progress(stage, done, count)


class _File(Struct):
    bytes: int
    sha256: Sha256


class _Mark(Struct):
    """What ``simulated.json`` says of the simulation and of the files that are finished."""

    version: Count
    seed: int
    options: dict[str, Any]
    files: dict[str, _File]


def _claim(out: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """The folder's mark, written first, so that nothing in it is taken for AVE. Refuses folders of others."""
    path = out / SIMULATED_MARK
    if not claim_folder(out, SIMULATED_MARK, "the same simulation"):
        return _write_mark(out, facts | {"files": {}})
    remove_abandoned(out)  # of a run that was killed: as large as what it was writing
    kept = read_json(path, _Mark, expected="the file avel wrote", do="choose another folder", folder=out)
    mark: dict[str, Any] = msgspec.to_builtins(kept)
    found = {key: mark[key] for key in facts}
    if found != facts:
        ours, theirs = ({**each, **each["options"]} for each in (facts, found))
        told = ", ".join(
            f"{key} {theirs.get(key)} (asked: {value})"
            for key, value in ours.items()
            if key != "options" and theirs.get(key) != value
        )
        raise AvelError(f"{out} holds another simulation: {told}", "the same numbers", "choose another folder")
    return mark


def _write_mark(out: Path, mark: dict[str, Any]) -> dict[str, Any]:
    """Write simulated.json; ``made_with`` is for the record alone."""
    told = {
        "title": "simulated features, not AVE",
        **mark,
        "made_with": {"avel": avel.__version__, "numpy": np.__version__, "python": platform.python_version()},
    }
    write_file(out / SIMULATED_MARK, json.dumps(told, indent=1) + "\n")
    return mark


def _fingerprint(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": file_sha256(path)}


def _finished(out: Path, mark: dict[str, Any], name: str) -> bool:
    path = out / name
    return name in mark["files"] and path.is_file() and path.stat().st_size == mark["files"][name]["bytes"]


def _check_numbers(grid: tuple[int, int], visual_dim: int) -> None:
    if len(grid) != 2 or min(grid) < 1:
        raise AvelError(
            f"grid = {' x '.join(map(str, grid))}", "two whole numbers, each at least 1", "give another grid"
        )
    if visual_dim < 1:
        raise AvelError(f"visual_dim = {visual_dim}", "a whole number, at least 1", "give another width")
