"""Training: one loop for every model, on Lightning Fabric; a run that was killed can be resumed."""

from __future__ import annotations

import difflib
import math
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from dataclasses import fields as dataclass_fields
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from avel import checkpoint
from avel.baselines import segment_baselines
from avel.cml import DIRECTIONS, Direction, by_length, events, located, located_baselines, query
from avel.config import TrainConfig
from avel.curves import Curves, check_tensorboard
from avel.data.ave.files import CLASSES as AVE_CLASSES
from avel.data.labels import refuse_background
from avel.data.loader import Windows, residence, task_split
from avel.data.splits import BACKGROUND_SPLIT, KNOWN
from avel.data.store import Store, open_store
from avel.devices import device
from avel.errors import AvelError
from avel.files import check_folder
from avel.inference import forward, outputs
from avel.memory import keep_freed_memory
from avel.metrics import confusion, segment_accuracy
from avel.models import build_model
from avel.runs import WarmStart, read_metrics, start_or_resume
from avel.text import counted, first_names
from avel.types import DistanceOutput, Progress, Report, Target, TrainStatus

T = TypeVar("T")

REPORT_SECONDS = 1.0  # between two reports within an epoch: reading the loss waits for the GPU


@dataclass(frozen=True)
class Run:
    """A finished training run.

    Attributes:
        folder: the run folder.
        best_epoch: the epoch whose weights were kept.
        best_accuracy: its accuracy on the split ``select_on``: of segments, or in task cml the mean of A2V and V2A.
        metrics: one dict per epoch, as in ``metrics.jsonl``.
        baselines: the scores of the trivial baselines on that split, by name; each segment counts once.
    """

    folder: Path
    best_epoch: int
    best_accuracy: float
    metrics: list[dict[str, Any]]
    baselines: dict[str, float]


def train(
    config: TrainConfig,
    *,
    progress: Progress | None = None,
    notice: Callable[[str], None] | None = None,
    report: Report | None = None,
) -> Run:
    """Train one model with one seed, or resume the stopped run in ``config.out``.

    Args:
        config: the settings; ``config.out`` becomes the run folder.
        progress: called as ``progress("train", epochs done, epochs)``.
        notice: called with a line for each thing worth knowing, such as where the features are kept.
        report: called with loss and accuracy at the end of each epoch, and at most once a second within it. Only
            the first of several processes calls it.

    Raises:
        AvelError: the store does not suit this training, this machine has no such device, the folder holds another run,
            the disk is full, or ``config.tensorboard`` is set where TensorBoard is not installed.
    """
    if config.tensorboard:
        check_tensorboard()
    place = _place(config)
    check_folder(config.out)
    store = open_store(config.store)
    to_train, to_choose = _windows(config, store)
    torch.manual_seed(config.seed)
    network = _network(config, store)
    fabric = _fabric(config, place)
    if not fabric.is_global_zero:  # only the first process reports
        progress = notice = report = None
    state_file = config.out / "last.state.safetensors"
    resumed = os.path.lexists(state_file)
    warm_start = None
    if config.init_from is not None and not resumed:
        warm_start = checkpoint.start_from(config.init_from, network, store.classes, store.extractors)
    sizes = {config.select_on: len(to_choose), "train": len(to_train)}
    started = _by_first(fabric, start_or_resume, config, store, sizes, fabric.world_size, warm_start)
    torch.set_num_threads(started.threads)
    keep_freed_memory()
    for remark in (_serve(fabric, to_train, to_choose), *_remarks(config, store, warm_start)):
        if notice:
            notice(remark)

    optimizer = torch.optim.Adam(
        network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    state = checkpoint.load_state(state_file, network, optimizer) if resumed else checkpoint.State.begin()
    metrics = read_metrics(config.out)[: state.epoch]  # without the line of an unfinished epoch
    fabric.barrier()  # no process writes before all have read
    model, optimizer = fabric.setup(network, optimizer)
    curves: list[Curves] = []  # one, in the first process
    if config.tensorboard:
        _by_first(fabric, lambda: curves.append(Curves(config.out, metrics)))

    for epoch in range(state.epoch + 1, config.epochs + 1):
        if progress:
            progress("train", epoch - 1, config.epochs)
        tell = report and partial(_tell, report, config, state, metrics, epoch)
        began = time.perf_counter()
        rate = _begin_epoch(fabric, config, network, optimizer, epoch)
        updates = plan(to_train, config, epoch, fabric.world_size, notice)
        notice = None  # in the first epoch only
        terms = fit_epoch(fabric, model, optimizer, to_train, updates, config, tell)
        state.epoch, state.updates = epoch, state.updates + len(updates)
        line = {"epoch": epoch, "updates": state.updates, "learning_rate": rate, "train": terms}
        if epoch % config.validate_every == 0 or epoch == config.epochs:
            scores = line[_scores_name(config)] = scores_on(fabric, model, to_choose, config)
            if config.keep == "last" or scores["accuracy"] > state.best_accuracy:
                state.best_epoch, state.best_accuracy = epoch, scores["accuracy"]
        line["seconds"] = round(time.perf_counter() - began, 3)
        metrics.append(line)
        _by_first(fabric, _save_epoch, config, store, network, optimizer, state, metrics, curves)
        if tell:
            tell(1.0, terms["total"])
    for each in curves:
        each.close()
    if progress:
        progress("train", config.epochs, config.epochs)
    baselines = _baselines(config, store, to_train, to_choose)
    return Run(config.out, state.best_epoch, state.best_accuracy, metrics, baselines)


def train_clips(store: Store, config: TrainConfig) -> list[int]:
    """Indices of the clips to train on."""
    clips = task_split(store, "train", config.task, as_imported=not config.shuffle)
    if config.task == "weak" and config.background_videos and BACKGROUND_SPLIT in store.splits():
        clips += store.split(BACKGROUND_SPLIT)
    return clips


def train_seeds(
    config: TrainConfig,
    seeds: Sequence[int],
    *,
    progress: Progress | None = None,
    notice: Callable[[str], None] | None = None,
    report: Report | None = None,
) -> list[Run]:
    """Train once per seed, in ``config.out`` itself for one seed and in ``seed-N`` folders under it for several.

    If ``config.init_from`` also holds a folder ``seed-N``, that seed starts from it.
    """
    if len(set(seeds)) < len(seeds) or min(seeds, default=0) < 0:
        raise AvelError(f"seeds {', '.join(map(str, seeds))}", "different numbers, 0 or more", "name each seed once")
    runs: list[Run] = []
    for seed in seeds:
        out = config.out if len(seeds) == 1 else config.out / f"seed-{seed}"
        source = config.init_from
        if source is not None and (source / f"seed-{seed}").is_dir():
            source = source / f"seed-{seed}"
        of_seed = replace(config, seed=seed, out=out, init_from=source)
        runs.append(train(of_seed, progress=progress, notice=None if runs else notice, report=report))
    return runs


@dataclass(frozen=True)
class Update:
    """The input of one update of the weights.

    Attributes:
        windows: indices of its windows, over all processes together.
        query: the direction in which ``strict`` cross-modality localization is trained; otherwise None.
    """

    windows: list[int]
    query: Direction | None = None


def plan(
    windows: Windows,
    config: TrainConfig,
    epoch: int,
    processes: int = 1,
    notice: Callable[[str], None] | None = None,
) -> list[Update]:
    """The updates of an epoch, in an order fixed by seed and epoch; without ``shuffle``, in the order of the windows.

    A strict batch has one direction and one event length, and every event comes once per epoch.

    Args:
        windows: the training windows.
        config: the settings of the run.
        epoch: the epoch, from 1.
        processes: number of processes that share each batch; windows left over by an even division are left out.
        notice: called with a line that says how many.

    Raises:
        AvelError: no window is left.
    """
    order = windows.shuffled(config.seed, epoch) if config.shuffle else list(range(len(windows)))
    size = config.batch_size
    if config.task == "cml" and config.cml_mode == "strict":
        found = events(windows)
        groups = by_length({index: found[index] for index in order if index in found}).values()
        pieces = [group[start : start + size] for group in groups for start in range(0, len(group), size)]
        dice = random.Random(config.seed * 1_000_003 + epoch)
        dice.shuffle(pieces)
        updates = [Update(piece, dice.choice(DIRECTIONS)) for piece in pieces]
    else:
        updates = [Update(order[start : start + size]) for start in range(0, len(order), size)]
    if config.drop_last:
        updates = [update for update in updates if len(update.windows) == size] or updates
    trimmed = [Update(each.windows[: len(each.windows) // processes * processes], each.query) for each in updates]
    lost = sum(len(update.windows) for update in updates) - sum(len(update.windows) for update in trimmed)
    if lost and notice:
        windows_lost = counted(lost, "window")
        notice(f"some batches do not divide evenly among {processes} processes: each epoch leaves out {windows_lost}")
    kept = [update for update in trimmed if update.windows]
    if not kept:
        raise AvelError(
            f"{processes} processes share batches of at most {max(len(update.windows) for update in updates)} windows",
            "a batch with a window for each process",
            "start fewer processes, or use more windows or a larger --batch-size",
        )
    return kept


def fit_epoch(
    fabric: Fabric,
    model: Any,
    optimizer: torch.optim.Optimizer,
    windows: Windows,
    updates: Sequence[Update],
    config: TrainConfig,
    report: Callable[[float, float], None] | None = None,
) -> dict[str, float]:
    """One pass over the windows.

    Every process computes the network's output for its share of a batch. All outputs are gathered with their gradients,
    so that every process computes the loss of the whole batch. Gathering sums the gradients and data parallelism
    averages them: they equal those of one process with the whole batch.

    Args:
        fabric: device, precision and processes.
        model: a network of ``MODELS``, wrapped by Fabric.
        optimizer: wrapped by Fabric.
        windows: the training windows.
        updates: from `plan`.
        config: the settings of the run.
        report: called with the share of updates done and the mean loss so far, about once a second.

    Returns:
        The mean of every loss term over the windows; in tasks full and weak also the segment accuracy during the pass.
    """
    model.train()
    sums: dict[str, float] = {}
    waiting: list[tuple[int, dict[str, Tensor]]] = []  # updates not in the sums yet: number of windows, loss terms

    def settle() -> dict[str, float]:
        """The means so far. It waits for the device, so it is not called after every update."""
        for size, terms in waiting:
            for name, value in terms.items():
                sums[name] = sums.get(name, 0.0) + float(value) * size
        waiting.clear()
        return {name: value / seen for name, value in sums.items()}

    right = torch.zeros((), dtype=torch.int64, device=fabric.device)
    segments, reported = 0, time.monotonic()
    share = slice(fabric.global_rank, None, fabric.world_size)
    seen = 0
    batches = windows.each([update.windows[share] for update in updates], reuse=True)
    for number, (update, batch) in enumerate(zip(updates, batches, strict=True), 1):
        if config.feature_noise:
            audio = batch.audio + config.feature_noise * torch.randn_like(batch.audio)
            visual = batch.visual.float() + config.feature_noise * torch.randn(batch.visual.shape, device=fabric.device)
            batch = replace(batch, audio=audio, visual=visual)
        if update.query:
            batch = query(batch, windows.num_classes, update.query)
        output = forward(model, batch, config.streams)
        gathered, target = joint(fabric, output.parts, batch.target)
        terms = model.loss(gathered, target)
        optimizer.zero_grad(set_to_none=True)
        fabric.backward(terms["total"])
        if config.gradient_clipping:  # a norm that is not finite makes the loss so too: an error below
            fabric.clip_gradients(model, optimizer, max_norm=config.gradient_clipping, error_if_nonfinite=False)
        optimizer.step()
        waiting.append((len(update.windows), {name: value.detach() for name, value in terms.items()}))
        seen += len(update.windows)
        if not isinstance(output, DistanceOutput):
            right += (output.labels() == batch.target.labels).sum()
            segments += batch.target.labels.numel()
        if report and number < len(updates) and time.monotonic() - reported >= REPORT_SECONDS:
            report(number / len(updates), settle()["total"])
            reported = time.monotonic()
    means = settle()
    if not np.isfinite(means["total"]):
        raise AvelError(
            f"the loss became {means['total']} ({means})",
            "a finite loss",
            f"try a smaller --learning-rate (now {config.learning_rate}); finished epochs are kept in {config.out}",
        )
    right_in_all, in_all = _summed(fabric, torch.stack([right, torch.full_like(right, segments)])).tolist()
    return {**means, "accuracy": right_in_all / in_all} if in_all else means


def joint(fabric: Fabric, parts: dict[str, Tensor], target: Target) -> tuple[dict[str, Tensor], Target]:
    """The outputs of all processes for a batch, (B, ...) with gradients, and its targets; the same on every process."""
    if fabric.world_size == 1:
        return parts, target

    def gathered(share: Tensor) -> Tensor:
        shares = fabric.all_gather(share, sync_grads=True)  # (processes, B / processes, ...)
        assert isinstance(shares, Tensor)
        return shares.flatten(0, 1)

    fields = {field.name: gathered(getattr(target, field.name)) for field in dataclass_fields(target)}
    return {name: gathered(part) for name, part in parts.items()}, Target(**fields)


def scores_on(fabric: Fabric, model: nn.Module, windows: Windows, config: TrainConfig) -> dict[str, float]:
    """The ``accuracy`` that decides which epoch is best. Each process scores its share of the windows.

    Tasks full and weak: the segment accuracy, each segment counted once. Task cml: the mean of ``a2v`` and ``v2a``, in
    the mode that is trained.
    """
    share = list(range(len(windows)))[fabric.global_rank :: fabric.world_size]
    size, streams = config.batch_size, config.streams
    if config.task == "cml":
        found = located(model, windows, config.cml_mode, batch_size=size, streams=streams, of=share)
        right = [int(found[direction].sum()) for direction in DIRECTIONS]
        a2v, v2a, counted = _summed(fabric, torch.tensor([*right, len(found["a2v"])])).tolist()
        return {"a2v": a2v / counted, "v2a": v2a / counted, "accuracy": (a2v + v2a) / (2 * counted)}
    counts = np.zeros((windows.num_classes + 1, windows.num_classes + 1), dtype=np.int64)
    batches = windows.each([share[start : start + size] for start in range(0, len(share), size)], reuse=True)
    for batch, output in outputs(model, batches, streams):
        assert not isinstance(output, DistanceOutput)
        labels, truth = output.labels().cpu(), batch.target.labels.cpu()
        counts += confusion(truth[batch.counted].numpy(), labels[batch.counted].numpy(), windows.num_classes)
    return {"accuracy": segment_accuracy(_summed(fabric, torch.from_numpy(counts)).numpy())}


def _scores_name(config: TrainConfig) -> str:
    """The key of `scores_on` in a metric line, where ``train`` holds the loss terms of training."""
    return "train_scores" if config.select_on == "train" else config.select_on


def learning_rate(config: TrainConfig, epoch: int) -> float:
    """Adam's learning rate in an epoch, counted from 1."""
    if config.schedule == "constant":
        return config.learning_rate
    if config.schedule == "step":
        return config.learning_rate * config.gamma ** sum(epoch > milestone for milestone in config.milestones)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (epoch - 1) / config.epochs))


def _begin_epoch(
    fabric: Fabric, config: TrainConfig, network: nn.Module, optimizer: torch.optim.Optimizer, epoch: int
) -> float:
    """Set everything that depends on the epoch; return its learning rate."""
    if callable(begin_epoch := getattr(network, "begin_epoch", None)):
        begin_epoch(epoch, config.epochs)
    # Every epoch is seeded anew, so that an exact resume needs no saved generator state.
    torch.manual_seed((config.seed * 1_000_003 + epoch) * fabric.world_size + fabric.global_rank)
    rate = learning_rate(config, epoch)
    for group in optimizer.param_groups:
        group["lr"] = rate
    return rate


def _tell(
    report: Report,
    config: TrainConfig,
    state: checkpoint.State,
    metrics: list[dict[str, Any]],
    epoch: int,
    done: float,
    loss: float,
) -> None:
    """Report how far training has come: the share ``done`` of the epoch's updates, and their mean loss."""
    name = _scores_name(config)
    accuracy = next((line[name]["accuracy"] for line in reversed(metrics) if name in line), None)
    best = state.best_accuracy if state.best_epoch else None
    report(TrainStatus(config.seed, epoch, config.epochs, done, loss, accuracy, best, state.best_epoch))


def _save_epoch(
    config: TrainConfig,
    store: Store,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: checkpoint.State,
    metrics: list[dict[str, Any]],
    curves: Sequence[Curves],
) -> None:
    """Write everything that belongs to a finished epoch."""
    for each in curves:  # first: a resumed run replaces points of an unfinished epoch
        each.add(metrics[-1])
    scores = metrics[-1].get(_scores_name(config))
    checkpoint.save_epoch(config, store, network, optimizer, state, metrics, scores and scores["accuracy"])


def _place(config: TrainConfig) -> torch.device:
    place = device(config.device)
    if place.type == "mps" and config.precision == "64-true":
        raise AvelError("precision 64-true on mps", "a device with float64: cpu or cuda", "give --device cpu")
    return place


def _windows(config: TrainConfig, store: Store) -> tuple[Windows, Windows]:
    """The windows to train on, and those to choose the epoch on. AvelError if they do not suit the task."""
    _check_splits(config, store)
    to_train = Windows(store, train_clips(store, config), config.window, weak_labels=config.weak_labels)
    to_choose = Windows(store, task_split(store, config.select_on, config.task), config.window)
    _check_events(config, to_train, to_choose)
    if config.task != "cml":
        _check_classes(config, store)
    return to_train, to_choose


def _network(config: TrainConfig, store: Store) -> nn.Module:
    """A network with the seed's random weights; with 64-true, the weights of 32-true converted to float64."""
    network = build_model(
        config.model,
        audio_dim=store.audio_dim,
        visual_dim=store.visual_dim,
        grid=store.grid,
        num_classes=len(store.classes),
        task=config.task,
        **config.options,
    )
    return network.to(torch.float64 if config.precision == "64-true" else torch.float32)


def _serve(fabric: Fabric, *windows: Windows) -> str:
    """Serve batches on the device; return where the features are kept, in words."""
    home = residence(windows, fabric.device)
    for each in windows:
        each.serve(fabric.device, resident=home.fits)
    return str(home)


def _remarks(config: TrainConfig, store: Store, warm_start: WarmStart | None) -> list[str]:
    """Notices about a run before it starts."""
    said = [str(warm_start)] if warm_start else []
    if config.select_on == "train":
        said.append("the epoch is chosen on the training clips: its accuracy says nothing about other videos")
    unused = [clip.id for clip in store.clips if clip.spans is not None and not {*KNOWN} & {*clip.splits}]
    if unused:
        names = first_names(unused)
        said.append(f"{len(unused)} labelled clips are in no split that training or evaluation uses: {names}")
    return said


def _baselines(config: TrainConfig, store: Store, to_train: Windows, to_choose: Windows) -> dict[str, float]:
    """The scores of the trivial baselines on the split that chooses the epoch."""
    if config.task == "cml":
        return located_baselines(to_train, to_choose).values
    return segment_baselines((store.labels(index).numpy() for index in to_choose.clips), len(store.classes))


def _fabric(config: TrainConfig, place: torch.device) -> Fabric:
    """Fabric for one process, or for the processes that torchrun started."""
    processes, here = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    fabric = Fabric(
        accelerator=place.type,
        devices=here if place.index is None else [place.index],
        num_nodes=processes // here,
        strategy="ddp" if processes > 1 else "auto",
        # With 64-true, Fabric would round the network's output to float32 before the loss.
        precision="bf16-mixed" if config.precision == "bf16-mixed" else "32-true",
    )
    fabric.launch()
    return fabric


def _by_first(fabric: Fabric, work: Callable[..., T], *arguments: Any) -> T:
    """Do work in the first process only. All processes wait, then return its result or raise its `AvelError`.

    If only the first process raised, the others would end with an error about a broken connection.
    """
    outcome: Any = None
    if fabric.is_global_zero:
        try:
            outcome = work(*arguments)
        except AvelError as error:
            outcome = error
    outcome = fabric.broadcast(outcome)
    if isinstance(outcome, AvelError):
        raise outcome
    result: T = outcome
    return result


def _summed(fabric: Fabric, counts: Tensor) -> Tensor:
    """Counts summed over the processes."""
    summed = fabric.all_reduce(counts.to(fabric.device), reduce_op="sum")
    assert isinstance(summed, Tensor)
    return summed.cpu()


def _check_splits(config: TrainConfig, store: Store) -> None:
    """AvelError if there are no clips to train on, or none to choose the epoch on."""
    there = store.splits()
    for name, why in (("train", "clips to learn from"), (config.select_on, "clips to choose the epoch on")):
        if name not in there and not (config.task == "cml" and f"{name}_match" in there):
            found = f"only {' and '.join(there)}" if there else "no splits at all"
            way_out = "; or choose the epoch on the training clips, with --select-on train"
            raise AvelError(
                f"{config.store} has no clips of split {name!r}, {found}",
                f"{why}, in split {name!r}",
                f"write {name} into the column `split` for some clips of every class (such as 60% train, 20% val, 20% "
                f"test) and run `avel extract` again: finished clips are kept{way_out if name == 'val' else ''}",
            )


def _check_classes(config: TrainConfig, store: Store) -> None:
    """AvelError if the model would be tested on a class without training clips, usually a misspelt label.

    Not for AVE: its classes and splits are fixed, and a small part of it, or of its stand-in, may lack some classes.
    """
    if store.classes == AVE_CLASSES:
        return
    trained = {span.label for index in train_clips(store, config) for span in store.clips[index].spans or ()}
    for split in ("val", "test"):
        unseen: dict[str, str] = {}
        for clip in store.clips:
            if split in clip.splits:
                unseen |= {span.label: clip.id for span in clip.spans or () if span.label not in trained}
        if unseen:
            label, clip_id = next(iter(unseen.items()))
            others = f", nor is {', '.join(map(repr, [*unseen][1:]))}" if len(unseen) > 1 else ""
            near = difflib.get_close_matches(label, sorted(trained), 1)
            raise AvelError(
                f"{config.store}: the label {label!r} of {clip_id}, split {split!r}, is in no training clip{others}",
                f"every label in a training clip, too{f'; training has {near[0]!r}' if near else ''}",
                "correct the label in the CSV, or move clips with it to split 'train', and run `avel extract` again: "
                "finished clips are kept",
            )


def _check_events(config: TrainConfig, *windows: Windows) -> None:
    """AvelError if there is no event to learn, or none to choose the epoch on."""
    for each, split in zip(windows, ("train", config.select_on), strict=True):
        if config.task == "cml" and not events(each):
            raise AvelError(
                f"no clip for task cml in split {split} of {config.store} has one event shorter than the clip",
                "events that begin or end inside a clip, which task cml looks for",
                "train another task on these clips, or extract clips with shorter events",
            )
        refuse_background(f"split {split} of {config.store}", each.labels.numpy(), each.num_classes)
