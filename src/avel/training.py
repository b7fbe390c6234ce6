"""Training: one loop for every model, on Lightning Fabric, resumable after any kill."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from lightning_fabric import Fabric
from torch import nn

import avel
from avel import checkpoint
from avel.config import TrainConfig
from avel.data.loader import Batch, Windows, residence
from avel.data.store import Store, open_store
from avel.errors import AvelError
from avel.files import write_file
from avel.metrics import confusion, segment_accuracy
from avel.models import build_model
from avel.types import Progress, SegmentOutput


@dataclass(frozen=True)
class Run:
    """A finished training run.

    Attributes:
        folder: where it lies.
        best_epoch: the epoch whose weights were kept.
        best_accuracy: its segment accuracy on the split that chose it.
        metrics: one dict an epoch, as in ``metrics.jsonl``.
    """

    folder: Path
    best_epoch: int
    best_accuracy: float
    metrics: list[dict[str, Any]]


def train(config: TrainConfig, *, progress: Progress | None = None, notice: Callable[[str], None] | None = None) -> Run:
    """Train one model with one seed, or resume the run that was stopped in ``config.out``.

    Args:
        config: what to train on what; ``config.out`` becomes the run folder.
        progress: called as ``progress("train", epochs done, epochs)``.
        notice: called with a line on where the features lie and what reading them costs.

    Raises:
        AvelError: the store cannot serve this training, the folder holds another run, or the disk is full.
    """
    store = open_store(config.store)
    train_windows = Windows(store, store.split("train"), config.window)
    choose_windows = Windows(store, store.split(config.select_on), config.window)
    started = _start_or_resume(config, store, len(train_windows), len(choose_windows))
    torch.set_num_threads(started["threads"])
    fabric = Fabric(accelerator=config.device, devices=1, precision=config.precision)
    place = residence([train_windows, choose_windows], fabric.device)
    if notice:
        notice(str(place))
    for windows in (train_windows, choose_windows):
        windows.serve(fabric.device, resident=place.fits)

    torch.manual_seed(config.seed)
    network = build_model(
        config.model,
        audio_dim=store.audio_dim,
        visual_dim=store.visual_dim,
        grid=store.grid,
        num_classes=len(store.classes),
        task=config.task,
        **config.options,
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=config.learning_rate)
    state_file = config.out / "last.state.safetensors"
    facts: dict[str, Any] = {"epoch": 0, "best_epoch": 0, "best_accuracy": -1.0}
    if state_file.is_file():
        facts = checkpoint.load_state(state_file, network, optimizer)
    metrics = _metrics_up_to(config.out, facts["epoch"])
    model, optimizer = fabric.setup(network, optimizer)

    for epoch in range(facts["epoch"] + 1, config.epochs + 1):
        if progress:
            progress("train", epoch - 1, config.epochs)
        began = time.perf_counter()
        # Seeding every epoch by itself means that no generator state has to be saved to resume exactly.
        torch.manual_seed(config.seed * 1_000_003 + epoch)
        terms = fit_epoch(fabric, model, optimizer, train_windows, config, epoch)
        accuracy = accuracy_on(fabric, model, choose_windows, config)
        line = {
            "epoch": epoch,
            "learning_rate": optimizer.param_groups[0]["lr"],
            "train": terms,
            config.select_on: {"accuracy": accuracy},
            "seconds": round(time.perf_counter() - began, 3),
        }
        description = _description(config, store, epoch, accuracy)
        if accuracy > facts["best_accuracy"]:
            facts |= {"best_epoch": epoch, "best_accuracy": accuracy}
            checkpoint.save(config.out, "best", network, description)
        metrics.append(line)
        write_file(config.out / "metrics.jsonl", "".join(json.dumps(entry) + "\n" for entry in metrics))
        checkpoint.save(config.out, "last", network, description)
        # The state is written last: an epoch counts as finished only once everything else of it is on the disk.
        facts["epoch"] = epoch
        checkpoint.save_state(state_file, network, optimizer, facts)
    if progress:
        progress("train", config.epochs, config.epochs)
    return Run(config.out, facts["best_epoch"], facts["best_accuracy"], metrics)


def train_seeds(
    config: TrainConfig,
    seeds: Sequence[int],
    *,
    progress: Progress | None = None,
    notice: Callable[[str], None] | None = None,
) -> list[Run]:
    """Train once per seed, in ``config.out`` itself for one seed and in ``seed-N`` folders under it for several."""
    runs: list[Run] = []
    for seed in seeds:
        out = config.out if len(seeds) == 1 else config.out / f"seed-{seed}"
        runs.append(train(replace(config, seed=seed, out=out), progress=progress, notice=None if runs else notice))
    return runs


def fit_epoch(
    fabric: Fabric,
    model: Any,
    optimizer: torch.optim.Optimizer,
    windows: Windows,
    config: TrainConfig,
    epoch: int,
) -> dict[str, float]:
    """One pass over the windows in the order that seed and epoch fix.

    Args:
        fabric: device and precision.
        model: a network of ``MODELS``, as Fabric wraps it.
        optimizer: as Fabric wraps it.
        windows: to train on.
        config: batch size, seed and streams.
        epoch: from 1.

    Returns:
        The mean of every loss term over the windows, and the segment accuracy seen on the way.
    """
    model.train()
    sums: dict[str, float] = {}
    correct = segments = 0
    for batch in windows.batches(config.batch_size, shuffle_seed=(config.seed, epoch), reuse=True):
        if config.feature_noise:
            audio = batch.audio + config.feature_noise * torch.randn_like(batch.audio)
            visual = batch.visual.float() + config.feature_noise * torch.randn(batch.visual.shape, device=fabric.device)
            batch = replace(batch, audio=audio, visual=visual)
        output = forward(model, batch, config.streams)
        terms = model.loss(output.parts, batch.target)
        optimizer.zero_grad(set_to_none=True)
        fabric.backward(terms["total"])
        optimizer.step()
        count = len(batch.audio)
        for name, value in terms.items():
            sums[name] = sums.get(name, 0.0) + float(value.detach()) * count
        correct += int((output.labels() == batch.target.labels).sum())
        segments += batch.target.labels.numel()
    means = {name: value / len(windows) for name, value in sums.items()}
    if not np.isfinite(means["total"]):
        raise AvelError(
            f"the loss became {means['total']} in epoch {epoch} ({means})",
            "a finite loss",
            f"try a smaller --learning-rate (now {config.learning_rate}); finished epochs are kept in {config.out}",
        )
    return {**means, "accuracy": correct / segments}


@torch.no_grad()
def accuracy_on(fabric: Fabric, model: nn.Module, windows: Windows, config: TrainConfig) -> float:
    """Segment accuracy over the windows, every segment counted once."""
    model.eval()
    counts = np.zeros((windows.num_classes + 1, windows.num_classes + 1), dtype=np.int64)
    for batch in windows.batches(config.batch_size, reuse=True):
        labels = forward(model, batch, config.streams).labels().cpu()
        truth = batch.target.labels.cpu()
        counts += confusion(truth[batch.counted].numpy(), labels[batch.counted].numpy(), windows.num_classes)
    return segment_accuracy(counts)


def forward(model: nn.Module, batch: Batch, streams: str) -> SegmentOutput:
    """The model's output on a batch, with the stream that it may not use zeroed."""
    audio = batch.audio if streams != "visual" else torch.zeros_like(batch.audio)
    visual = batch.visual if streams != "audio" else torch.zeros_like(batch.visual)
    output: SegmentOutput = model(audio, visual)
    return output


def _description(config: TrainConfig, store: Store, epoch: int, accuracy: float) -> dict[str, Any]:
    """What a checkpoint says of itself: enough to build the network and to refuse foreign features."""
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
        "selected_on": config.select_on,
        "accuracy": accuracy,
    }


def _start_or_resume(config: TrainConfig, store: Store, num_train: int, num_choose: int) -> dict[str, Any]:
    """Write ``config.yaml`` and ``run.json`` of a new run, or check that the run in the folder is this one.

    Returns the content of ``run.json``.
    """
    if not num_train or not num_choose:
        raise AvelError(
            f"{config.store} holds {num_train} training windows and {num_choose} in split {config.select_on!r}",
            "at least one of each",
            f"give clips the splits train and {config.select_on} in the CSV's split column, and extract again",
        )
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(config).items()}
    run_file = config.out / "run.json"
    if run_file.is_file():
        run: dict[str, Any] = json.loads(run_file.read_text())
        compared = {key: value for key, value in settings.items() if key not in ("store", "out", "epochs", "threads")}
        different = [key for key, value in compared.items() if run["config"].get(key) != value]
        if run["store_checksum"] != store.checksum:
            different.append("store (its content)")
        if different:
            raise AvelError(
                f"{config.out} holds a run with another {', '.join(different)}",
                "an empty folder, or the run to resume with the same settings",
                "choose another --out, or delete that folder",
            )
        if config.epochs < run["config"]["epochs"]:
            raise AvelError(
                f"{config.out} holds a run of {run['config']['epochs']} epochs, and {config.epochs} were asked for",
                "as many epochs or more",
                "choose another --out",
            )
        if config.epochs > run["config"]["epochs"]:
            run["config"]["epochs"] = config.epochs
            write_file(run_file, json.dumps(run, indent=1))
        return run
    begun = {"config.yaml", ".config.yaml.tmp", ".run.json.tmp"}  # what a kill before run.json may leave
    if config.out.exists() and not (config.out.is_dir() and {file.name for file in config.out.iterdir()} <= begun):
        raise AvelError(f"{config.out} exists and is not a run folder", "a new or empty folder", "choose another --out")
    config.out.mkdir(parents=True, exist_ok=True)
    write_file(config.out / "config.yaml", yaml.safe_dump(settings, sort_keys=False))
    run = {
        "avel": avel.__version__,
        "config": settings,
        "store_checksum": store.checksum,
        "seed": config.seed,
        "threads": config.threads or torch.get_num_threads(),
        "commit": _commit(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "windows": {"train": num_train, config.select_on: num_choose},
    }
    write_file(run_file, json.dumps(run, indent=1))  # last: its presence says that the run was set up
    return run


def _metrics_up_to(folder: Path, epoch: int) -> list[dict[str, Any]]:
    """The metric lines of the finished epochs; a line of an epoch that was cut short is dropped."""
    file = folder / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    return [line for line in lines if line["epoch"] <= epoch]


def _commit() -> str | None:
    """The commit of the source tree that is running, None where it is no git checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
