"""What a training run is made of, and what its folder says of it; the sentence under each field is its ``--help``."""

from __future__ import annotations

import math
import os
from dataclasses import MISSING, dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec
import numpy as np
from msgspec import Meta, Struct

from avel.errors import AvelError
from avel.reading import LARGE_FILE, LONGEST_WINDOW, Count, Sha256, Text, parse_json, read_bytes, read_json
from avel.text import first_names


@dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Raises:
        AvelError: a value is of another type than its field, is out of bounds, or does not go with another setting.
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
    shuffle: bool = True
    """Draw a new order of the windows in every epoch. If false, every epoch takes the training clips in the order of
    the file that the split was imported from, or else of the store; background-only videos come last."""
    learning_rate: float = 1e-3
    """Adam's learning rate, at the start."""
    schedule: Literal["constant", "cosine", "step"] = "constant"
    """Learning rate over the epochs: constant, falling to 0 along a cosine, or multiplied by gamma at milestones."""
    milestones: list[int] = field(default_factory=list)
    """Schedule step: after each of these epochs the learning rate is multiplied by gamma, as in [60, 120]."""
    gamma: float = 0.1
    """Schedule step: the factor of the learning rate at each milestone."""
    weight_decay: float = 0.0
    """Adam's weight decay: this multiple of each weight is added to its gradient."""
    gradient_clipping: float = 0.0
    """Largest norm of the gradient of all weights together; a larger gradient is scaled down. 0 for no limit."""
    weak_labels: Literal["onehot", "proportion"] = "onehot"
    """Task weak: the video's class alone, or each class's share of its segments, which tells its length."""
    background_videos: bool = True
    """Task weak: train on the videos of background alone too, where the store has such a split."""
    cml_mode: Literal["joint", "strict"] = "joint"
    """Task cml: both streams whole and aligned, or the query as its own segments alone."""
    feature_noise: float = 0.0
    """Deviation of Gaussian noise added to the features in training only, against overfitting small data sets."""
    init_from: Path | None = None
    """Run folder or checkpoint to start from. Its kept weights are taken where name and shape are the same. Of a folder
    with several seeds, each seed starts from the run of the same seed, or else from the best run."""
    seed: int = 0
    """Seed of the weights, the dropout and the order of the windows."""
    streams: Literal["both", "audio", "visual"] = "both"
    """Streams the model may use; the other one is zeroed, in training and in every later use of the model."""
    select_on: Literal["val", "test", "train"] = "val"
    """Split that chooses the epoch to keep; test is the protocol of much published code, and marked in every result;
    train is for a store without val, and tells nothing of other videos."""
    validate_every: int = 1
    """Epochs from one look at that split to the next; the last epoch is always looked at."""
    keep: Literal["best", "last"] = "best"
    """Weights to keep: of the best epoch on that split, or of the last epoch."""
    device: str = "auto"
    """Device: auto, cpu, cuda or mps."""
    precision: Literal["32-true", "bf16-mixed", "64-true"] = "32-true"
    """Arithmetic: 32-true (float32), bf16-mixed (bfloat16 where PyTorch holds it safe), or 64-true (float64, to check
    results)."""
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
        for name, (good, bounds) in self._bounds().items():
            if not good:
                raise AvelError(f"{name} {getattr(self, name)}", bounds, f"give another {_option(name)}")
        self._check_together()

    def _bounds(self) -> dict[str, tuple[bool, str]]:
        """Whether each number is within its bounds, and what these are."""
        checks = {
            name: (1 <= getattr(self, name) <= 2**31, "at least 1")
            for name in ("epochs", "batch_size", "validate_every")
        }
        checks["window"] = (1 <= self.window <= LONGEST_WINDOW, f"1 to {LONGEST_WINDOW} segments")
        for name in ("learning_rate", "gamma"):
            checks[name] = (0 < getattr(self, name) < math.inf, "a finite number above 0")
        for name in ("feature_noise", "gradient_clipping", "weight_decay"):
            checks[name] = (0 <= getattr(self, name) < math.inf, "a finite number, not below 0")
        steps = [0, *self.milestones]
        checks["milestones"] = (all(a < b for a, b in pairwise(steps)), "rising numbers of epochs, from 1 on")
        return checks

    def _check_together(self) -> None:
        """Refuse a setting that another one makes idle or wrong."""
        for name, (chooser, word) in READ_IF.items():
            chosen = getattr(self, chooser)
            if chosen != word and getattr(self, name) != _default(name):
                raise AvelError(
                    f"{name} {getattr(self, name)} in {chooser} {chosen}",
                    f"a setting that this {chooser} reads: {name} is for {chooser} {word}",
                    f"leave out {_option(name)}, or give {_option(chooser)} {word}",
                )
        if self.schedule == "step" and not self.milestones:
            raise AvelError(
                "schedule step without milestones",
                "the epochs after which the learning rate is multiplied by gamma",
                "give --milestones, such as [60,120], or leave out --schedule",
            )
        if self.task == "cml" and self.cml_mode == "strict":
            if self.drop_last:
                raise AvelError(
                    "drop_last with cml_mode strict",
                    "whole epochs: its batches hold events of one length, and rare lengths would never be trained",
                    "leave out --drop-last",
                )
            if not self.shuffle:
                raise AvelError(
                    "shuffle false with cml_mode strict",
                    "shuffled batches: each holds events of one length, and in order the lengths would come one by one",
                    "leave out --shuffle",
                )


def selected_on(config: TrainConfig) -> str:
    """What chose the weights that a run keeps: a split, or ``last epoch``."""
    return "last epoch" if config.keep == "last" else config.select_on


#: Settings that are read only if another setting has this value.
READ_IF = {
    "weak_labels": ("task", "weak"),
    "background_videos": ("task", "weak"),
    "cml_mode": ("task", "cml"),
    "milestones": ("schedule", "step"),
    "gamma": ("schedule", "step"),
}


def _option(name: str) -> str:
    """A setting as it is typed."""
    return f"--{name.replace('_', '-')}"


def _default(name: str) -> Any:
    setting = next(each for each in fields(TrainConfig) if each.name == name)
    return setting.default if setting.default_factory is MISSING else setting.default_factory()


def _as_path(kind: type, given: Any) -> Any:
    """What msgspec asks for a type that it does not know, a path."""
    if kind is not Path or not isinstance(given, str | os.PathLike):
        raise TypeError
    return Path(given)


_Metric = int | float | dict[str, int | float]

#: Settings that older runs do not name; these ran with the default.
_ADDED = frozenset(
    {"tensorboard", "shuffle", "milestones", "gamma", "weight_decay", "gradient_clipping", "init_from", "keep"}
)


class WarmStart(Struct):
    """Where the first weights of a run come from.

    Attributes:
        checkpoint: its JSON file.
        weights_sha256: of its weights.
        model: that has these weights.
        epoch: after which they were kept.
        taken: tensors of the same name and shape in both networks.
        fresh: the other tensors of this run's network, which start at random.
        unused: the other tensors of the checkpoint.
        other_data: what the checkpoint was trained on that differs here, of classes and features.
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
        for names, what in ((self.fresh, "random here"), (self.unused, "not used of it")):
            if names:
                said += f"; {len(names)} {what}: {first_names(names)}"
        return f"{said}; it was trained on other {' and '.join(self.other_data)}" if self.other_data else said


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
        started_from: the weights it began with; None for random ones.
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
        """The run's settings. Raises ValueError where they are none."""
        try:
            return TrainConfig(**self.config)
        except AvelError as error:
            raise ValueError(f"{error.found}, not {error.expected}") from error


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
