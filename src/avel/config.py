"""What a training run is made of, and what its folder says of it; the sentence under each field is its ``--help``."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec
import numpy as np
from msgspec import Meta, Struct

from avel.errors import AvelError
from avel.reading import LARGE_FILE, LONGEST_WINDOW, Count, Sha256, Text, parse_json, read_bytes, read_json


@dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Raises:
        AvelError: a value is of another type than its field, or none of the words that the field knows.
    """

    store: Path
    """Feature store to train on, as `avel extract` wrote it."""
    out: Path
    """Run folder to write; a run that was stopped there is resumed."""
    model: str = "ccln"
    """Model, by its name in avel.models.MODELS."""
    task: Literal["full", "weak", "cml"] = "full"
    """Task: full (a label for every segment), weak (one for the whole video), cml (cross-modality localization)."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the model, as in --options.width 128; an unknown one is answered with the list of all."""
    window: int = 10
    """Segments the model sees at once; longer clips are cut into windows."""
    epochs: int = 60
    """Passes over the training windows."""
    batch_size: int = 32
    """Windows in a batch, over all processes together."""
    drop_last: bool = False
    """Leave out the last, smaller batch of an epoch."""
    learning_rate: float = 1e-3
    """Adam's learning rate, at the start."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate over the epochs: constant, or falling to 0 along a cosine."""
    weak_labels: Literal["onehot", "proportion"] = "onehot"
    """Task weak: the video's class alone, or each class's share of its segments, which tells its length."""
    background_videos: bool = True
    """Task weak: train on the videos of background alone too, where the store has such a split."""
    cml_mode: Literal["joint", "strict"] = "joint"
    """Task cml: both streams whole and aligned, or the query as its own segments alone."""
    feature_noise: float = 0.0
    """Deviation of Gaussian noise added to the features in training only, against overfitting small data sets."""
    seed: int = 0
    """Seed of the weights, the dropout and the order of the windows."""
    streams: Literal["both", "audio", "visual"] = "both"
    """Streams the model may use; the other one is zeroed, in training and in every later use of the model."""
    select_on: Literal["val", "test", "train"] = "val"
    """Split that chooses the epoch to keep; test is the protocol of much published code, and marked in every result;
    train is for a store without val, and tells nothing of other videos."""
    validate_every: int = 1
    """Epochs from one look at that split to the next; the last epoch is always looked at."""
    device: str = "auto"
    """Device: auto, cpu, cuda or mps."""
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    """Arithmetic: 32-true, or bf16-mixed."""
    tensorboard: bool = False
    """Write loss, accuracy and learning rate for TensorBoard too, under tensorboard/ in the run folder."""
    threads: int = 0
    """CPU threads; 0 leaves the choice to PyTorch. A resumed run uses the number it started with."""

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            given = getattr(self, name)
            plain = given.item() if isinstance(given, np.generic) else given
            try:
                object.__setattr__(self, name, msgspec.convert(plain, kind, dec_hook=_as_path))
            except (msgspec.ValidationError, TypeError) as error:
                words = get_args(kind) if get_origin(kind) is Literal else ()
                expected = " or ".join(map(repr, words)) or f"a value of type {getattr(kind, '__name__', kind)}"
                raise AvelError(f"{name} = {given!r}", expected, f"give {name} another value") from error


def _as_path(kind: type, given: Any) -> Any:
    """What msgspec asks for a type that it does not know, a path."""
    if kind is not Path or not isinstance(given, str | os.PathLike):
        raise TypeError
    return Path(given)


_Metric = int | float | dict[str, int | float]

#: Settings that older runs do not name; these ran with the default.
_ADDED = frozenset({"tensorboard"})


class RunFacts(Struct):
    """What ``run.json`` says of a training run.

    Attributes:
        avel: version that began it.
        config: its settings as JSON values; `settings` gives them as a `TrainConfig`.
        store_checksum: of the store it was trained on.
        seed, threads, processes: it runs with.
        commit: of the source tree, None where that was no git checkout.
        versions: of Python and libraries.
        machine: in words.
        windows: split -> training windows in it.
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

    def __post_init__(self) -> None:
        known = {each.name for each in fields(TrainConfig)}
        different = sorted(self.config.keys() ^ known - (_ADDED - self.config.keys()))
        if different:
            raise ValueError(
                f"the setting {different[0][:80]!r} is {'missing' if different[0] in known else 'unknown'}"
            )
        self.settings()

    def settings(self) -> TrainConfig:
        """The run's settings. Raises ValueError where they are none."""
        try:
            settings = TrainConfig(**self.config)
        except AvelError as error:
            raise ValueError(error.found) from error
        wrong = wrong_numbers(settings)
        if wrong:
            name, bounds = next(iter(wrong.items()))
            raise ValueError(f"{name} {getattr(settings, name)!r}, not {bounds}")
        return settings


def read_run(folder: Path) -> RunFacts:
    """Read a run folder's ``run.json``.

    Raises:
        AvelError: there is none, or it is damaged or leads out of the folder.
    """
    expected, do = "the file that `avel train` writes", "copy the whole run folder again, or train again"
    try:
        return read_json(folder / "run.json", RunFacts, folder=folder, expected=expected, do=do)
    except FileNotFoundError:
        raise AvelError(f"no run.json in {folder}", expected, do) from None


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run folder's ``metrics.jsonl``, one an epoch from the first on; none where there is no file.

    Raises:
        AvelError: it is damaged or leads out of the folder.
    """
    path = folder / "metrics.jsonl"
    try:
        text = read_bytes(path, LARGE_FILE, folder=folder)
        # A loss that is no number is a result, too.
        lines: list[dict[str, Any]] = [
            parse_json(line, dict[str, _Metric], allow_nan=True) for line in text.splitlines()
        ]
        for number, line in enumerate(lines, start=1):
            terms = line.get("train")
            if line.get("epoch") != number or not isinstance(terms, dict):
                raise ValueError(f"line {number} is not that of epoch {number}")
            if terms.keys() != lines[0]["train"].keys():
                raise ValueError(f"line {number} has other terms than line 1")
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise AvelError(
            f"{path} is damaged ({error})", "a line for every epoch, as `avel train` writes them", "copy the run again"
        ) from error
    return lines


def wrong_numbers(config: TrainConfig) -> dict[str, str]:
    """The settings that are out of bounds, with what they may be."""
    positive = {name: 1 <= getattr(config, name) <= 2**31 for name in ("epochs", "batch_size", "validate_every")}
    checks = {name: (good, "at least 1") for name, good in positive.items()}
    checks["window"] = (1 <= config.window <= LONGEST_WINDOW, f"1 to {LONGEST_WINDOW} segments")
    checks["learning_rate"] = (0 < config.learning_rate < math.inf, "a finite number above 0")
    checks["feature_noise"] = (0 <= config.feature_noise < math.inf, "a finite number, not below 0")
    return {name: bounds for name, (good, bounds) in checks.items() if not good}
