"""Checkpoints: weights in safetensors, everything else in JSON. Nothing here ever unpickles.

A run folder holds two, ``best`` and ``last``:

- ``NAME.safetensors``: the network's parameters;
- ``NAME.json``: how to build the network, what it was trained on, and the sha256 of the weights.

``last.state.safetensors`` holds parameters, optimizer state and epoch in *one* file: whenever a run is killed, it finds
either all of an epoch or none of it when it resumes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import torch
from msgspec import Meta, Struct
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from avel import devices
from avel.config import TrainConfig
from avel.data.store import Store
from avel.errors import AvelError, UnreadableError
from avel.files import file_sha256, write_file
from avel.models import build_model
from avel.reading import (
    Count,
    Extractors,
    Fraction,
    SegmentSeconds,
    Sha256,
    Size,
    Streams,
    Window,
    class_names,
    damaged_tensors,
    open_tensors,
    parse_json,
    read_json,
    tensor_shapes,
)
from avel.runs import WarmStart, seeds_of

SCHEMA = 1
MOST_WEIGHTS = 2**31  # bytes

_Option = str | bool | Annotated[int, Meta(ge=-(2**16), le=2**16)] | Annotated[float, Meta(ge=-1e6, le=1e6)]


class _Network(Struct, forbid_unknown_fields=True):
    """How to build a network: the arguments of `build_model`."""

    name: str
    task: Literal["full", "weak", "cml"]
    audio_dim: Size
    visual_dim: Size
    grid: tuple[Size, Size]
    num_classes: Size
    options: dict[str, _Option]

    def __post_init__(self) -> None:
        for option in self.options.keys() & set(self.__struct_fields__):
            raise ValueError(f"{option!r} among the options")


class Description(Struct, forbid_unknown_fields=True):
    """The content of ``NAME.json``."""

    schema: Literal[1]
    weights_sha256: Sha256
    network: _Network
    classes: list[str]
    window: Window
    segment_seconds: SegmentSeconds
    extractors: Extractors
    streams: Streams
    epoch: Count
    seed: int
    selected_on: Literal["val", "test", "train", "last epoch"]
    accuracy: Fraction | None

    def __post_init__(self) -> None:
        class_names(self.classes)
        if len(self.classes) != self.network.num_classes:
            raise ValueError(f"{len(self.classes)} classes for a network of {self.network.num_classes}")


class State(Struct, forbid_unknown_fields=True):
    """How far a run has come.

    Attributes:
        epoch: the last finished epoch.
        updates: number of updates up to its end.
        best_epoch: the epoch whose weights are kept; 0 for none yet.
        best_accuracy: their accuracy on the split that chooses the epoch; -1 for none yet.
    """

    epoch: Count
    updates: Count
    best_epoch: Count
    best_accuracy: Annotated[float, Meta(ge=-1, le=1)]

    @classmethod
    def begin(cls) -> State:
        """The state before the first epoch."""
        return cls(epoch=0, updates=0, best_epoch=0, best_accuracy=-1.0)


@dataclass(frozen=True)
class LoadedModel:
    """A trained network and all that is needed to use it on a video.

    Attributes:
        network: in evaluation mode, on the requested device.
        name: the model's name in ``MODELS``.
        task: ``full``, ``weak`` or ``cml``.
        classes: the C event classes it knows, without background.
        window: number of segments (T) it was trained on.
        segment_seconds: length of a segment in seconds.
        extractors: ``{"visual" | "audio": {"name", "tag", "options"}}``, the extractors its features must come from.
        streams: ``both``, or the one stream it was trained on (the other is zeroed).
        source: the JSON file it came from.
        shape: (Da, H, W, Dv) of its input features.
    """

    network: nn.Module
    name: str
    task: str
    classes: tuple[str, ...]
    window: int
    segment_seconds: float
    extractors: Mapping[str, Mapping[str, Any]]
    streams: str
    source: Path
    shape: tuple[int, int, int, int]


def save(folder: Path, name: str, network: nn.Module, description: Mapping[str, Any]) -> None:
    """Write ``name.safetensors`` and then ``name.json``, which carries the hash of the weights."""
    weights = folder / f"{name}.safetensors"
    # As bytes, not with save_file, which hides a full disk behind an error of its own.
    write_file(weights, safetensors_bytes(_on_cpu(network.state_dict())))
    content = {"schema": SCHEMA, "weights_sha256": file_sha256(weights), **description}
    write_file(folder / f"{name}.json", json.dumps(content, indent=1))


def best_seed(path: str | Path) -> Path:
    """Of several seeds, the run with the best accuracy on the split that chose its epoch; for a single run, its path.

    Raises:
        AvelError: as in `seeds_of`, or a run has no such accuracy.
    """
    seeds = seeds_of(path)
    if len(seeds) == 1:
        return Path(path) if seeds == [Path(path)] else seeds[0]
    accuracies = []
    for seed in seeds:
        try:
            accuracy = read_description(seed / "best.json").accuracy
        except FileNotFoundError:
            accuracy = None
        if accuracy is None:
            raise AvelError(
                f"{seed / 'best.json'} has no accuracy",
                f"only finished runs in {path}, to choose the best of them",
                f"run the same `avel train` again to finish it; or name one run, such as {seeds[0]}",
            )
        accuracies.append(accuracy)
    return seeds[accuracies.index(max(accuracies))]


def load(path: str | Path, device: str = "cpu") -> LoadedModel:
    """Load a trained model from a run folder (its ``best`` checkpoint) or from a checkpoint's ``.json`` file.

    From a folder of several seeds it takes the best run (`best_seed`).

    Raises:
        AvelError: there is no checkpoint, it is damaged or half-written, another version of avel made it, or this
            machine has no such device.
    """
    place, path = devices.device(device), best_seed(path)
    description_file = path / "best.json" if path.is_dir() else path.with_suffix(".json")
    try:
        description = read_description(description_file)
    except FileNotFoundError:
        raise AvelError(
            f"no checkpoint in {path}" if path.exists() else f"no such run folder or checkpoint: {path}",
            f"a run folder that `avel train` wrote, holding {description_file.name} and its .safetensors",
            "give the folder named by --out in `avel train`; if that run was stopped early, run it again to finish it",
        ) from None
    weights = description_file.with_suffix(".safetensors")
    arguments = msgspec.structs.asdict(description.network)
    options = arguments.pop("options")
    with torch.device("meta"):  # allocates nothing, whatever the sizes
        planned = build_model(**options, **arguments)
    try:
        with open_tensors(weights, weights.parent, "pt", MOST_WEIGHTS) as file:
            found = tensor_shapes(file)
            # Precision 64-true trains float64 weights.
            precision = torch.float64 if any(kind == "F64" for kind, _ in found.values()) else torch.float32
            _check_shapes(weights, found, planned.to(precision).state_dict())
            if file_sha256(weights) != description.weights_sha256:
                raise _unlike(weights, "does not match its .json", description.weights_sha256)
            tensors = {key: file.get_tensor(key) for key in found}
            _check_finite(weights, tensors)
            network = build_model(**options, **arguments).to(precision)
            network.load_state_dict(tensors)
    except FileNotFoundError:
        raise _unlike(weights, "is missing", description.weights_sha256) from None
    return LoadedModel(
        network=network.to(place).eval(),
        name=description.network.name,
        task=description.network.task,
        classes=tuple(description.classes),
        window=description.window,
        segment_seconds=description.segment_seconds,
        extractors=msgspec.to_builtins(description.extractors),
        streams=description.streams,
        source=description_file,
        shape=(description.network.audio_dim, *description.network.grid, description.network.visual_dim),
    )


def start_from(path: Path, network: nn.Module, classes: Sequence[str], extractors: Mapping[str, Any]) -> WarmStart:
    """Copy the weights of a trained network into another, where name and shape match.

    Args:
        path: as in `load`.
        network: the network to change.
        classes, extractors: those of the data that it will be trained on.

    Raises:
        AvelError: as in `load`, or no tensor matches in name and shape.
    """
    model = load(path)
    given, own = model.network.state_dict(), network.state_dict()
    taken = [name for name, tensor in own.items() if name in given and given[name].shape == tensor.shape]
    if not taken:
        raise AvelError(
            f"no tensor of {model.source} ({model.name}, task {model.task}) matches this model in name and shape",
            "a run of the same model, or of one that shares layers with it",
            "give --init-from another run, or leave it out",
        )
    network.load_state_dict({name: given[name] for name in taken}, strict=False)
    description = read_description(model.source)
    same = {
        "classes": model.classes == tuple(classes),
        "features": all(extractors[kind]["tag"] == made["tag"] for kind, made in model.extractors.items()),
    }
    return WarmStart(
        checkpoint=os.path.abspath(model.source),
        weights_sha256=description.weights_sha256,
        model=model.name,
        epoch=description.epoch,
        taken=taken,
        fresh=[name for name in own if name not in taken],
        unused=[name for name in given if name not in taken],
        other_data=[what for what, alike in same.items() if not alike],
    )


def read_description(file: Path) -> Description:
    """Read a checkpoint's JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        AvelError: it is damaged, has another schema, or links to a place outside its folder.
    """
    return read_json(
        file,
        Description,
        folder=file.parent,
        schema=("schema", SCHEMA),
        expected="the JSON that `avel train` writes",
        do="train again, or copy the whole run folder again",
    )


def _unlike(weights: Path, found: str, sha256: str) -> AvelError:
    return AvelError(
        f"{weights} {found}",
        f"weights with sha256 {sha256[:12]}...",
        "if training was killed, run the same `avel train` again to resume it; otherwise copy the run folder again",
    )


def _check_shapes(path: Path, found: dict[str, tuple[str, tuple[int, ...]]], planned: Mapping[str, Tensor]) -> None:
    """AvelError if a file's header lists other tensors than the network has."""
    if sum(tensor.nbytes for tensor in planned.values()) > MOST_WEIGHTS:
        raise damaged_tensors(path, f"its .json describes a network of more than {MOST_WEIGHTS} bytes")
    different = sorted(found.keys() ^ planned.keys())
    if different:
        raise damaged_tensors(
            path, f"the tensor {different[0][:80]!r} is {'not in this network' if different[0] in found else 'missing'}"
        )
    for key, tensor in planned.items():
        wanted = (_TYPES[tensor.dtype], tuple(tensor.shape))
        if found[key] != wanted:
            raise damaged_tensors(path, f"{key} is {_told(*found[key])}, but the network has {_told(*wanted)}")


def _told(kind: str, shape: tuple[int, ...]) -> str:
    return f"{kind} of shape {shape}"


def _check_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    for key, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise AvelError(
                f"{path}: {key} holds NaN or infinity",
                "weights that are finite numbers",
                "train again, with a smaller --learning-rate if the loss was not finite",
            )


#: Names of tensor types in safetensors files.
_TYPES = {torch.float32: "F32", torch.float64: "F64", torch.float16: "F16", torch.bfloat16: "BF16"}
_TYPES |= {torch.int64: "I64", torch.bool: "BOOL"}


def save_epoch(
    config: TrainConfig,
    store: Store,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: State,
    metrics: Sequence[dict[str, Any]],
    accuracy: float | None,
) -> None:
    """Write the checkpoints and the metric lines of a finished epoch.

    Args:
        config, store: those of the run.
        network, optimizer: at the end of the epoch.
        state: at the end of the epoch.
        metrics: one line per epoch.
        accuracy: the accuracy of this epoch; None if it was not validated.
    """
    description = _describe(config, store, state.epoch, accuracy)
    if state.best_epoch == state.epoch:
        save(config.out, "best", network, description)
    write_file(config.out / "metrics.jsonl", "".join(json.dumps(entry) + "\n" for entry in metrics))
    save(config.out, "last", network, description)
    # The state is written last: an epoch counts as finished only once all its other files are on the disk.
    save_state(config.out / "last.state.safetensors", network, optimizer, state)


def _describe(config: TrainConfig, store: Store, epoch: int, accuracy: float | None) -> dict[str, Any]:
    """The description of a checkpoint: enough to build the network and to refuse features of other extractors."""
    return {
        "network": {
            "name": config.model,
            "task": config.task,
            "audio_dim": store.audio_dim,
            "visual_dim": store.visual_dim,
            "grid": list(store.grid),
            "num_classes": len(store.classes),
            "options": config.options,
        },
        "classes": list(store.classes),
        "window": config.window,
        "segment_seconds": store.segment_seconds,
        "extractors": store.extractors,
        "streams": config.streams,
        "epoch": epoch,
        "seed": config.seed,
        "selected_on": config.selected_on,
        "accuracy": accuracy,
    }


def save_state(path: Path, network: nn.Module, optimizer: torch.optim.Optimizer, state: State) -> None:
    """Write parameters, optimizer state and the run's state to one file."""
    tensors = {f"network.{key}": value for key, value in network.state_dict().items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": torch.as_tensor(value) for key, value in moments.items()}
    write_file(path, safetensors_bytes(_on_cpu(tensors), {"facts": json.dumps(msgspec.to_builtins(state))}))


def load_state(path: Path, network: nn.Module, optimizer: torch.optim.Optimizer) -> State:
    """Restore ``network`` and ``optimizer`` from the file; return how far the run had come.

    Raises:
        UnreadableError: the file cannot be read, such as for lack of permission.
        AvelError: it is damaged or belongs to another network.
    """
    weights = list(network.parameters())
    planned = {f"network.{key}": value for key, value in network.state_dict().items()}
    moments: dict[int, dict[str, Tensor]] = {}
    try:
        with open_tensors(path, path.parent, "pt", 3 * MOST_WEIGHTS) as file:
            facts = parse_json((file.metadata() or {}).get("facts", ""), State)
            found = tensor_shapes(file)
            for index in sorted({_parameter(key) for key in found if not key.startswith("network.")}):
                if not 0 <= index < len(weights):
                    raise damaged_tensors(path, f"optimizer state of parameter {index}, of {len(weights)}")
                step = torch.empty((), dtype=torch.float32)
                planned |= {f"optimizer.{index}.{key}": weights[index] for key in ("exp_avg", "exp_avg_sq")}
                planned[f"optimizer.{index}.step"] = step
            _check_shapes(path, found, planned)
            tensors = {key: file.get_tensor(key).clone() for key in planned}
    except UnreadableError:
        raise
    except (FileNotFoundError, ValueError, AvelError) as error:
        raise AvelError(
            f"cannot resume from {path}: {error.found if isinstance(error, AvelError) else error}",
            "the state file of the same run",
            "delete the run folder and train again",
        ) from error
    _check_finite(path, tensors)
    for key in tensors.keys() - {f"network.{name}" for name in network.state_dict()}:
        moments.setdefault(_parameter(key), {})[key.rpartition(".")[2]] = tensors[key]
    if facts.updates and not moments:
        raise AvelError(f"{path} holds no optimizer state", "optimizer state", "delete the run folder and train again")
    network.load_state_dict({key: tensors[f"network.{key}"] for key in network.state_dict()})
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    return facts


def _parameter(key: str) -> int:
    """The parameter number in a key ``optimizer.NUMBER.FIELD``. Raises ValueError for any other key."""
    kind, _, rest = key.partition(".")
    number = rest.partition(".")[0]
    if kind != "optimizer" or not (number.isdecimal() and len(number) < 10):
        raise ValueError(f"it holds a tensor called {key[:80]!r}")
    return int(number)


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
