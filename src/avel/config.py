"""What a training run is made of; the sentence under each field is its ``--help``."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec
import numpy as np

from avel.errors import AvelError


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
