"""The folder of a training run: reading and writing ``run.json`` and ``metrics.jsonl``, resuming, finding the store.

`avel.checkpoint` writes the weights there, and everything else that belongs to a finished epoch.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import yaml
from msgspec import Meta, Struct

import avel
from avel.config import TrainConfig
from avel.data.store import Store, open_store
from avel.errors import AvelError
from avel.files import is_missing, make_folder, remove_abandoned, write_file
from avel.reading import LARGE_FILE, Count, Sha256, Text, parse_json, read_bytes, read_json
from avel.text import first_names

#: Settings that a resumed run may change.
UNCOMPARED = ("store", "out", "epochs", "threads", "tensorboard")


_Metric = int | float | dict[str, int | float]

#: Settings that older runs do not list; they ran with the default.
_ADDED = frozenset(
    {"tensorboard", "shuffle", "milestones", "gamma", "weight_decay", "gradient_clipping", "init_from", "keep"}
)


class WarmStart(Struct):
    """Where the initial weights of a run come from.

    Attributes:
        checkpoint: the checkpoint's JSON file.
        weights_sha256: hash of its weights.
        model: name of its model.
        epoch: the epoch that ended with these weights.
        taken: tensors with the same name and shape in both networks.
        fresh: the other tensors of this run's network, which start at random.
        unused: the other tensors of the checkpoint.
        other_data: which of classes and features differ from those the checkpoint was trained on.
    """

    checkpoint: Text
    weights_sha256: Sha256
    model: Text
    epoch: Count
    taken: list[Text]
    fresh: list[Text]
    unused: list[Text]
    other_data: list[Text]

    def __str__(self) -> str:
        said = f"starts from {self.checkpoint} ({self.model}, epoch {self.epoch}): {len(self.taken)} tensors taken"
        for names, what in ((self.fresh, "start at random"), (self.unused, "of the checkpoint not used")):
            if names:
                said += f"; {len(names)} {what}: {first_names(names)}"
        return f"{said}; it was trained on other {' and '.join(self.other_data)}" if self.other_data else said


class RunFacts(Struct):
    """The content of ``run.json``: the facts of a training run.

    Attributes:
        avel: the version that started it.
        config: its settings as JSON values; `settings` returns them as a `TrainConfig`.
        store_checksum: checksum of the store it is trained on.
        seed, threads, processes: what it runs with.
        commit: commit of avel's source tree; None if that is not a git checkout.
        versions: versions of Python and of libraries.
        machine: the machine, in words.
        windows: number of windows in each split.
        started_from: the weights it started with; None for random ones.
    """

    avel: Text
    config: dict[str, Any]
    store_checksum: Sha256
    seed: int
    threads: Annotated[int, Meta(ge=1, le=2**12)]
    processes: Annotated[int, Meta(ge=1, le=2**16)]
    commit: Text | None
    versions: dict[str, Text]
    machine: Text
    windows: dict[str, Count]
    started_from: WarmStart | None = None

    def __post_init__(self) -> None:
        known = {each.name for each in fields(TrainConfig)}
        different = sorted(self.config.keys() ^ known - (_ADDED - self.config.keys()))
        if different:
            raise ValueError(
                f"the setting {different[0][:80]!r} is {'missing' if different[0] in known else 'unknown'}"
            )
        self.settings()

    def settings(self) -> TrainConfig:
        """The run's settings. Raises ValueError if they are invalid."""
        try:
            return TrainConfig(**self.config)
        except AvelError as error:
            raise ValueError(f"{error.found}, not {error.expected}") from error


def read_run(folder: Path) -> RunFacts:
    """Read a run folder's ``run.json``.

    Raises:
        AvelError: the file is missing or damaged, or links to a place outside the folder.
    """
    expected, do = "the file that `avel train` writes", "copy the whole run folder again, or train again"
    try:
        return read_json(folder / "run.json", RunFacts, folder=folder, expected=expected, do=do)
    except FileNotFoundError:
        raise AvelError(f"no run.json in {folder}", expected, do) from None


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run folder's ``metrics.jsonl``, one per epoch from the first on; none if there is no file.

    Raises:
        AvelError: the file is damaged, or links to a place outside the folder.
    """
    path = folder / "metrics.jsonl"
    try:
        text = read_bytes(path, LARGE_FILE, folder=folder)
        # A loss of NaN is a result, too.
        lines: list[dict[str, Any]] = [
            parse_json(line, dict[str, _Metric], allow_nan=True) for line in text.splitlines()
        ]
        for number, line in enumerate(lines, start=1):
            terms = line.get("train")
            if line.get("epoch") != number or not isinstance(terms, dict):
                raise ValueError(f"line {number} is not of epoch {number}")
            if terms.keys() != lines[0]["train"].keys():
                raise ValueError(f"line {number} has other terms than line 1")
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise AvelError(
            f"{path} is damaged ({error})", "one line per epoch, as `avel train` writes them", "copy the run again"
        ) from error
    return lines


def seeds_of(run: str | Path) -> list[Path]:
    """The run folders under a folder of several seeds, in the order of the seeds; for a single run, the folder itself.

    Raises:
        AvelError: the folder is a run itself, and also holds others.
    """
    run = Path(run)
    numbers = {folder: folder.name.removeprefix("seed-") for folder in run.glob("seed-*") if folder.is_dir()}
    seeds = sorted(
        (folder for folder in numbers if numbers[folder].isdecimal()), key=lambda folder: int(numbers[folder])
    )
    if seeds and (run / "run.json").exists():
        raise AvelError(
            f"{run} is a run itself, and also holds {len(seeds)} others, such as {seeds[0].name}",
            "a run of one seed, or a folder with the runs of several",
            f"name one, such as {seeds[0]}, or move the runs of several seeds to a folder of their own",
        )
    return seeds or [run]


def run_facts(run: Path) -> RunFacts:
    """The content of a run's ``run.json``.

    Raises:
        AvelError: the folder is not the run of one seed.
    """
    several = seeds_of(run)
    if several != [run]:
        raise AvelError(
            f"{run} holds runs of several seeds", "the run of one seed", f"name one of them, such as {several[0]}"
        )
    if is_missing(run / "run.json"):
        raise AvelError(
            f"no run.json in {run}, and so no checkpoint" if run.is_dir() else f"no such run folder: {run}",
            "a run folder that `avel train` wrote",
            "give the folder named by --out in `avel train`",
        )
    return read_run(run)


def store_of(run: Path, facts: RunFacts, given: str | Path | None = None) -> Store:
    """The store that a run was trained on, wherever run and store are now.

    It is looked for at ``given``; otherwise at its recorded path, and then at the same path relative to the run folder,
    as both may have been moved together. Runs of older versions recorded a path relative to the working directory.

    Raises:
        AvelError: it is at none of these places, or another store is there.
    """
    settings, wanted = facts.config, facts.store_checksum
    places = [Path(given)] if given is not None else [Path(settings["store"])]
    if given is None and os.path.isabs(settings["store"]) == os.path.isabs(settings["out"]):
        moved = Path(os.path.normpath(run.absolute() / os.path.relpath(settings["store"], settings["out"])))
        places += [moved] if moved != places[0].absolute() else []
    others = []
    for place in places:
        if given is None and is_missing(place / "store.json"):
            continue
        store = open_store(place)
        if store.checksum == wanted:
            return store
        others.append(store)
    expected = f"the feature store that the run was trained on, whose store.json has sha256 {wanted[:12]}..."
    if not others:
        looked = ", nor at ".join(str(place.absolute()) for place in places)
        raise AvelError(f"the store of {run} is not at {looked}", expected, "say where it is now, with --store STORE")
    raise AvelError(
        f"{others[0].path} is not the store of {run}, or has changed since: its store.json has sha256 "
        f"{others[0].checksum[:12]}...",
        expected,
        "give the right one with --store STORE, or train again on this one",
    )


def start_or_resume(
    config: TrainConfig, store: Store, windows: dict[str, int], processes: int, warm_start: WarmStart | None
) -> RunFacts:
    """Begin a run in ``config.out``, or check that the run there is this one.

    Args:
        config: the settings of the run.
        store: the store to train on.
        windows: number of windows in each split.
        processes: number of processes that train together.
        warm_start: where the weights come from; None also for a resumed run that has finished an epoch.

    Returns:
        The content of ``run.json``.

    Raises:
        AvelError: there is nothing to train on, or the folder holds another run or other files.
    """
    if not all(windows.values()):
        raise AvelError(
            f"{config.store} holds {' and '.join(f'{number} windows of {name}' for name, number in windows.items())}",
            "at least one window in each split",
            f"assign clips to the splits {' and '.join(windows)} in the CSV's split column, and extract again",
        )
    # Absolute, because the run will be used from other working directories.
    settings = {
        key: os.path.abspath(value) if isinstance(value, Path) else value for key, value in asdict(config).items()
    }
    if os.path.lexists(config.out / "run.json"):
        return _resume(config, settings, store, warm_start)
    return _start(config, settings, store, windows, processes, warm_start)


def _resume(config: TrainConfig, settings: dict[str, Any], store: Store, warm_start: WarmStart | None) -> RunFacts:
    """The run in the folder, with the current values of the settings that may change."""
    run = read_run(config.out)
    before = {**asdict(run.settings()), **run.config}
    different = [key for key, value in settings.items() if key not in UNCOMPARED and before[key] != value]
    if run.store_checksum != store.checksum:
        different.append("store (its content)")
    if different:
        raise AvelError(
            f"{config.out} holds a run with different settings: {', '.join(different)}",
            "an empty folder, or the run to resume with the same settings",
            "choose another --out, or delete that folder",
        )
    if warm_start is not None and warm_start != run.started_from:
        raise AvelError(
            f"{warm_start.checkpoint} has changed since the run in {config.out} began",
            "the weights that it began with, as it has not finished an epoch yet",
            "choose another --out, or delete that folder",
        )
    fixed = config.schedule == "cosine"
    if config.epochs < before["epochs"] or (fixed and config.epochs != before["epochs"]):
        raise AvelError(
            f"{config.out} holds a run of {before['epochs']} epochs, but --epochs is {config.epochs}",
            "the same number of epochs: the cosine schedule depends on it" if fixed else "as many epochs or more",
            "choose another --out",
        )
    now = {key: settings[key] for key in ("epochs", "store", "out")}
    if not now.items() <= run.config.items():  # more epochs, or the run or store was moved
        run.config |= now
        write_file(config.out / "run.json", json.dumps(msgspec.to_builtins(run), indent=1))
    return run


def _start(
    config: TrainConfig,
    settings: dict[str, Any],
    store: Store,
    windows: dict[str, int],
    processes: int,
    warm_start: WarmStart | None,
) -> RunFacts:
    """Write ``config.yaml`` and ``run.json`` of a new run."""
    import torch

    remove_abandoned(config.out)
    begun = {"config.yaml"}  # what may be left if training is killed before it writes run.json
    if config.out.exists() and not (config.out.is_dir() and {file.name for file in config.out.iterdir()} <= begun):
        raise AvelError(f"{config.out} exists and is not a run folder", "a new or empty folder", "choose another --out")
    make_folder(config.out)
    write_file(config.out / "config.yaml", yaml.safe_dump(settings, sort_keys=False))
    run = RunFacts(
        avel=avel.__version__,
        config=settings,
        store_checksum=store.checksum,
        seed=config.seed,
        threads=config.threads or torch.get_num_threads(),
        processes=processes,
        commit=_commit(),
        versions={"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__},
        machine=f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        windows=windows,
        started_from=warm_start,
    )
    # Last, as its presence means that the run is set up.
    write_file(config.out / "run.json", json.dumps(msgspec.to_builtins(run), indent=1))
    return run


def _commit() -> str | None:
    """The commit of the running source tree; None if it is not a git checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
