"""Checkpoints: weights in safetensors, everything else in JSON. Nothing here ever unpickles.

A run folder holds two, ``best`` and ``last``:

- ``NAME.safetensors``: the network's parameters;
- ``NAME.json``: how to build the network and what it was trained on, with the sha256 of the weights beside it;
- ``last.state.safetensors``: parameters, optimizer state and epoch in *one* file, so that a resumed run finds either
  all of an epoch or none of it, whenever it was killed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from avel import devices
from avel.errors import AvelError
from avel.files import file_sha256, write_file
from avel.models import build_model

SCHEMA = 1


@dataclass(frozen=True)
class LoadedModel:
    """A trained network and all that is needed to use it on a video.

    Attributes:
        network: in evaluation mode, on the asked device.
        name: the model's name in ``MODELS``.
        task: ``full``, ``weak`` or ``cml``.
        classes: the C event classes it knows, without background.
        window: segments (T) it was trained on.
        segment_seconds: length of a segment in seconds.
        extractors: ``{"visual" | "audio": {"name", "tag", "options"}}``, what its features must come from.
        streams: ``both``, or the one stream it was trained on (the other is zeroed).
        source: the JSON file it came from.
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


def save(folder: Path, name: str, network: nn.Module, description: Mapping[str, Any]) -> None:
    """Write ``name.safetensors`` and then ``name.json``, which carries the hash of the weights."""
    weights = folder / f"{name}.safetensors"
    # As bytes, and not by save_file: that hides a full disk in an error of its own.
    write_file(weights, safetensors_bytes(_on_cpu(network.state_dict())))
    content = {"schema": SCHEMA, "weights_sha256": file_sha256(weights), **description}
    write_file(folder / f"{name}.json", json.dumps(content, indent=1))


def seeds_of(run: str | Path) -> list[Path]:
    """The run folders of a training of several seeds, in the order of the seeds; of one seed, the folder itself.

    Raises:
        AvelError: the folder is a run itself, and holds others too.
    """
    run = Path(run)
    numbers = {folder: folder.name.removeprefix("seed-") for folder in run.glob("seed-*") if folder.is_dir()}
    seeds = sorted((folder for folder in numbers if numbers[folder].isdigit()), key=lambda folder: int(numbers[folder]))
    if seeds and (run / "run.json").exists():
        raise AvelError(
            f"{run} is a run itself, and holds {len(seeds)} others, such as {seeds[0].name}",
            "a run of one seed, or a folder with the runs of several",
            f"name one, such as {seeds[0]}, or move those of several seeds to a folder of their own",
        )
    return seeds or [run]


def best_seed(path: str | Path) -> Path:
    """Of a training of several seeds the run whose kept epoch was best on the split that chose it; else the path.

    Raises:
        AvelError: as `seeds_of`, or a run has no such accuracy.
    """
    seeds = seeds_of(path)
    if len(seeds) == 1:
        return Path(path) if seeds == [Path(path)] else seeds[0]
    accuracies = []
    for seed in seeds:
        try:
            accuracies.append(float(json.loads((seed / "best.json").read_text())["accuracy"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise AvelError(
                f"{seed / 'best.json'} tells no accuracy ({error})",
                f"finished runs in {path}, to take the best of them",
                f"run the same `avel train` again: it resumes; or name one run, such as {seeds[0]}",
            ) from error
    return seeds[accuracies.index(max(accuracies))]


def load(path: str | Path, device: str = "cpu") -> LoadedModel:
    """Load a trained model from a run folder (its ``best`` checkpoint) or from a checkpoint's ``.json`` file.

    Of a folder with the runs of several seeds it takes the best on the split that chose the epochs (`best_seed`).

    Raises:
        AvelError: there is no checkpoint, it is damaged or half-written, another version of avel made it, or this
            machine has no such device.
    """
    path, place = best_seed(path), devices.device(device)
    description_file = path / "best.json" if path.is_dir() else path.with_suffix(".json")
    if not description_file.is_file():
        raise AvelError(
            f"no checkpoint in {path}" if path.exists() else f"no such run folder or checkpoint: {path}",
            f"a run folder that `avel train` wrote, holding {description_file.name} and its .safetensors",
            "give the folder named by --out in `avel train`; if that run was stopped early, run it again to finish it",
        )
    try:
        description = json.loads(description_file.read_text())
        network_arguments = dict(description["network"])
        weights = description_file.with_suffix(".safetensors")
        schema = description["schema"]
    except (ValueError, KeyError, TypeError) as error:
        raise AvelError(
            f"{description_file} is not a checkpoint description ({error})",
            "the JSON that `avel train` writes",
            "train again, or copy the whole run folder again",
        ) from error
    if schema != SCHEMA:
        raise AvelError(f"{description_file} has schema {schema}", f"schema {SCHEMA}", "use the avel that wrote it")
    if not weights.is_file() or file_sha256(weights) != description["weights_sha256"]:
        raise AvelError(
            f"{weights} {'does not match its .json' if weights.is_file() else 'is missing'}",
            f"weights with sha256 {description['weights_sha256'][:12]}...",
            "if training was killed here, run the same `avel train` again: it resumes; else copy the run folder again",
        )
    network_arguments["grid"] = tuple(network_arguments["grid"])
    network = build_model(**network_arguments.pop("options"), **network_arguments)
    with safe_open(weights, "pt") as file:
        network.load_state_dict({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118 (not a dict)
    return LoadedModel(
        network=network.to(place).eval(),
        name=network_arguments["name"],
        task=network_arguments["task"],
        classes=tuple(description["classes"]),
        window=description["window"],
        segment_seconds=description["segment_seconds"],
        extractors=description["extractors"],
        streams=description["streams"],
        source=description_file,
    )


def save_state(path: Path, network: nn.Module, optimizer: torch.optim.Optimizer, facts: Mapping[str, Any]) -> None:
    """Write parameters, optimizer state and ``facts`` (JSON values) as one file."""
    tensors = {f"network.{key}": value for key, value in network.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": torch.as_tensor(value) for key, value in state.items()}
    write_file(path, safetensors_bytes(_on_cpu(tensors), {"facts": json.dumps(facts)}))


def load_state(path: Path, network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Put a saved state back into ``network`` and ``optimizer``; return its ``facts``.

    Raises:
        AvelError: the file is damaged or belongs to another network.
    """
    parameters: dict[str, Tensor] = {}
    moments: dict[int, dict[str, Tensor]] = {}
    try:
        with safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118 (not a dict)
                kind, rest = key.split(".", 1)
                if kind == "network":
                    parameters[rest] = file.get_tensor(key).clone()
                else:
                    index, field = rest.split(".")
                    moments.setdefault(int(index), {})[field] = file.get_tensor(key).clone()
            facts: dict[str, Any] = json.loads(file.metadata()["facts"])
        network.load_state_dict(parameters)
    except (SafetensorError, RuntimeError, KeyError, ValueError) as error:
        raise AvelError(
            f"cannot resume from {path}: {error}",
            "the state file of the same run",
            "delete the run folder and train again",
        ) from error
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    return facts


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
