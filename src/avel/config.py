"""The settings of a training run. The sentence under each field is its help text."""

from __future__ import annotations

import math
import os
from dataclasses import MISSING, dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec
import numpy as np

from avel.errors import AvelError
from avel.reading import LONGEST_WINDOW


@dataclass(frozen=True)
class TrainConfig:
    """The settings of one training run.

    Raises:
        AvelError: a value has the wrong type, is out of bounds, or conflicts with another setting.
    """

    store: Path
    """Feature store to train on, made by `avel extract` or `avel data import-ave`."""
    out: Path
    """Run folder to write. After a stop, the same command resumes the run."""
    model: str = "ccln"
    """Name of the model, such as ccln. An unknown name gets the list of all models."""
    task: Literal["full", "weak", "cml"] = "full"
    """Task: full (a label per segment), weak (one label per video), or cml (cross-modality localization)."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the model, as in --options.width 128. An unknown name gets the list of all options."""
    window: int = 10
    """Number T of segments that the model sees at once. Longer clips are cut into windows of T segments."""
    epochs: int = 60
    """Passes over the training windows."""
    batch_size: int = 32
    """Windows per batch, over all processes together."""
    drop_last: bool = False
    """Leave out the last batch of an epoch if it is smaller."""
    shuffle: bool = True
    """Shuffle the windows in every epoch. If false, every epoch takes the training clips in the order of the file that
    the split was imported from, or else of the store; background-only videos come last."""
    learning_rate: float = 1e-3
    """Adam's learning rate at the start."""
    schedule: Literal["constant", "cosine", "step"] = "constant"
    """Learning rate over the epochs: constant, falling to 0 along a cosine, or multiplied by gamma at milestones."""
    milestones: list[int] = field(default_factory=list)
    """Schedule step: epochs after which the learning rate is multiplied by gamma, as in [60,120]."""
    gamma: float = 0.1
    """Schedule step: factor that multiplies the learning rate at each milestone."""
    weight_decay: float = 0.0
    """Adam's weight decay: this multiple of each weight is added to its gradient."""
    gradient_clipping: float = 0.0
    """Largest norm of the gradient over all weights; a larger gradient is scaled down. 0 for no limit."""
    weak_labels: Literal["onehot", "proportion"] = "onehot"
    """Task weak: what a video's label is: its class only (onehot), or each class's share of its segments (proportion),
    which also tells the model how long the event is."""
    background_videos: bool = True
    """Task weak: also train on background-only videos, if the store has them."""
    cml_mode: Literal["joint", "strict"] = "joint"
    """Task cml: joint shows the model both streams, whole and aligned; strict shows only the query's segments of its
    stream."""
    feature_noise: float = 0.0
    """Standard deviation of Gaussian noise added to features in training, against overfitting on small data sets."""
    init_from: Path | None = None
    """Run folder or checkpoint to start from. Its weights are used where name and shape match. From a folder with
    several seeds, each seed starts from the run with the same seed, or else from the best run."""
    seed: int = 0
    """Seed for the initial weights, dropout and the order of the windows."""
    streams: Literal["both", "audio", "visual"] = "both"
    """Features that the model may use. The others are set to zero, in training and in later use of the model."""
    select_on: Literal["val", "test", "train"] = "val"
    """Split that decides which epoch to keep. Much published code uses test; avel marks that in every result. train is
    for a store without val; its accuracy says nothing about other videos."""
    validate_every: int = 1
    """Validate on that split every N epochs. The last epoch is always validated."""
    keep: Literal["best", "last"] = "best"
    """Weights to keep: those of the best epoch on that split, or of the last epoch."""
    device: str = "auto"
    """Where the model runs: cpu, cuda, cuda:1 or mps; auto takes a GPU if there is one."""
    precision: Literal["32-true", "bf16-mixed", "64-true"] = "32-true"
    """Numerical precision: 32-true (float32), bf16-mixed (bfloat16 where PyTorch considers it safe), or 64-true
    (float64, to check results)."""
    tensorboard: bool = False
    """Also write loss, accuracy and learning rate for TensorBoard, under tensorboard/ in the run folder."""
    threads: int = 0
    """Number of CPU threads; 0 lets PyTorch choose. A resumed run uses the number it started with."""

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

    @property
    def selected_on(self) -> str:
        """What decides which weights are kept: a split, or ``last epoch``."""
        return "last epoch" if self.keep == "last" else self.select_on

    def _bounds(self) -> dict[str, tuple[bool, str]]:
        """Whether each number is within its bounds, and the bounds in words."""
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
        checks["milestones"] = (all(a < b for a, b in pairwise(steps)), "increasing epoch numbers, from 1 on")
        return checks

    def _check_together(self) -> None:
        """Refuse a setting that has no effect, or a wrong one, with another setting."""
        for name, (chooser, word) in READ_IF.items():
            chosen = getattr(self, chooser)
            if chosen != word and getattr(self, name) != _default(name):
                raise AvelError(
                    f"{name} {getattr(self, name)} with {chooser} {chosen}",
                    f"{name} only with {chooser} {word}",
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
                    "all batches: each holds events of one length, and rare lengths would never be trained on",
                    "leave out --drop-last",
                )
            if not self.shuffle:
                raise AvelError(
                    "shuffle false with cml_mode strict",
                    "shuffled batches: each holds events of one length, and unshuffled they run from short to long",
                    "leave out --shuffle",
                )


#: Settings that have an effect only if another setting has this value.
READ_IF = {
    "weak_labels": ("task", "weak"),
    "background_videos": ("task", "weak"),
    "cml_mode": ("task", "cml"),
    "milestones": ("schedule", "step"),
    "gamma": ("schedule", "step"),
}


def _option(name: str) -> str:
    """A setting as typed on the command line."""
    return f"--{name.replace('_', '-')}"


def _default(name: str) -> Any:
    setting = next(each for each in fields(TrainConfig) if each.name == name)
    return setting.default if setting.default_factory is MISSING else setting.default_factory()


def _as_path(kind: type, given: Any) -> Any:
    """Convert to a path, the one type here that msgspec does not know."""
    if kind is not Path or not isinstance(given, str | os.PathLike):
        raise TypeError
    return Path(given)
