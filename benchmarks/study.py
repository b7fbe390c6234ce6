"""The study: each choice that CCLN's paper leaves open, its branch modes and its ablations, on simulated features.

    avel data simulate --out small --grid 4 4 --visual-dim 64 --train-videos 800 --val-videos 800 --test-videos 2000 \\
        --set-version 1
    avel data import-ave small --out small-store
    python benchmarks/study.py --store small-store --work runs/study --table choices --width 64
    python benchmarks/study.py --store small-store --work runs/study --table modules --width 64
    python benchmarks/study.py --store store --work runs/study --table paper --tasks full --seeds 0

Each row changes one thing, against the same start and for the same number of updates. Only the table ``paper`` trains
its preset as long as the paper says, on features of AVE's size. The validation videos judge a choice, and also chose
the epoch. The table shows the difference on the test videos, too.

results/study_TABLE.npz keeps what each run had right in every video, with its settings and its commit. After every run,
results/study_TABLE.json is made from it. The same command adds the runs that are missing and repeats none.

Rows whose option was removed are not trained any more: the tag study-options still has them.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
import yaml
from birth import ROOT, birth

from avel.baselines import segment_baselines
from avel.checkpoint import load
from avel.cml import DIRECTIONS, MODES, events, located, located_baselines
from avel.config import TrainConfig
from avel.data.loader import Windows, task_split
from avel.data.store import open_store
from avel.errors import AvelError
from avel.files import replacing, write_file
from avel.inference import outputs
from avel.metrics import paired_interval
from avel.models import build_model
from avel.models.ccln import CCLNOptions
from avel.training import plan, train, train_clips

TASKS = ("full", "weak", "cml")
TAG = "study-options"  # the last commit with every option that the study tried
WINDOW = 10
LOOKS = 12  # validations in a run


@dataclass(frozen=True)
class Row:
    """One row of a table: one thing to try.

    Attributes:
        task, name: what it is called.
        settings: fields of `TrainConfig` that differ from the table's start; ``options`` of the model among them.
        big: run with every seed; a small choice is run once.
        config: a file under configs/ that the row starts from instead of the model's own defaults.
        whole: trained with the batch and epochs of that file, not with those of the table.
    """

    task: str
    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    big: bool = True
    config: str = ""
    whole: bool = False


def options(**values: Any) -> dict[str, Any]:
    """Settings that are options of the model."""
    return {"options": values}


PRINTED = {"fee_weight": 150.0, "wccl_weight": 25.0}

#: What the paper leaves open, against the defaults of the model. The first row of a task is the start of the others.
CHOICES = [
    Row("full", "start"),
    Row("full", "classification sigmoid_focal", options(classification="sigmoid_focal")),
    Row("full", "classification softmax_focal", options(classification="softmax_focal")),
    Row("full", "lambda 150, eta 25, all means", options(**PRINTED)),
    Row("full", "sigmoid_focal, lambda 150, eta 25", options(classification="sigmoid_focal", **PRINTED)),
    Row("full", "lambda 0.1, eta 0.1", options(fee_weight=0.1, wccl_weight=0.1)),
    Row("full", "fee_gate product", options(fee_gate="product")),
    Row("full", "delta 0.05", options(temperature=0.05)),
    Row("full", "delta 0.5", options(temperature=0.5)),
    Row("full", "embedding_width 16", options(embedding_width=16)),
    Row("full", "branch_norm time", options(branch_norm="time")),
    Row("full", "pairing column", options(pairing="column")),
    Row("full", "dropout 0", options(dropout=0.0)),
    Row("full", "dropout 0.5", options(dropout=0.5)),
    Row("full", "learning rate 3e-4", {"learning_rate": 3e-4}),
    Row("full", "schedule cosine", {"schedule": "cosine"}),
    Row("weak", "start"),
    Row("weak", "weak_pool sum", options(weak_pool="sum")),
    Row("weak", "weak_pool max", options(weak_pool="max")),
    Row("weak", "weak_pool topk", options(weak_pool="topk")),
    Row("weak", "classification sigmoid_focal", options(classification="sigmoid_focal")),
    Row("weak", "lambda 150, eta 25, all means", options(**PRINTED)),
    Row("weak", "lambda 0, eta 25/128", options(fee_weight=0.0)),
    Row("weak", "fee_gate product", options(fee_gate="product")),
    Row("weak", "learning rate 1e-4", {"learning_rate": 1e-4}),
    Row("weak", "weak_labels proportion", {"weak_labels": "proportion"}),
    Row("weak", "without background-only videos", {"background_videos": False}),
    Row("weak", "dropout 0.5", options(dropout=0.5)),
    Row("cml", "start"),
    Row("cml", "cml_loss exponential", options(cml_loss="exponential")),
    Row("cml", "cml_loss contrastive", options(cml_loss="contrastive")),
    Row("cml", "cml_pairs all", options(cml_pairs="all")),
    Row("cml", "lambda 150/128", options(wccl_weight=150 / 128)),
    Row("cml", "delta 0.05", options(temperature=0.05)),
    Row("cml", "wccl_labels relevance, E 16", options(wccl_labels="relevance", embedding_width=16)),
    Row("cml", "cml_visual pooled", options(cml_visual="pooled")),
    Row("cml", "learning rate 1e-4", {"learning_rate": 1e-4}),
    Row("cml", "trained strict", {"cml_mode": "strict"}),
    Row("full", "audio_axis hidden", options(audio_axis="hidden"), big=False),
    Row("full", "input_map", options(input_map=True), big=False),
    Row("full", "tau 0", options(threshold=0.0), big=False),
    Row("full", "tau 0.09", options(threshold=0.09), big=False),
    Row("full", "interaction_relu", options(interaction_relu=True), big=False),
    Row("full", "integration_map linear_relu", options(integration_map="linear_relu"), big=False),
    Row("full", "integration_map linear_relu_linear", options(integration_map="linear_relu_linear"), big=False),
    Row("full", "top_segments 1", options(top_segments=1), big=False),
    Row("full", "top_segments 10", options(top_segments=10), big=False),
    Row("full", "fee_level segment", options(fee_level="segment"), big=False),
    Row("full", "wccl_labels segment, E 16", options(wccl_labels="segment", embedding_width=16), big=False),
    Row("full", "normalize false", options(normalize=False), big=False),
    Row("full", "wccl_reduction sum", options(wccl_reduction="sum"), big=False),
    Row("full", "AV+V+A, one loss over 3B anchors", options(branch="AV+V+A", branch_anchors="joint"), big=False),
    Row("full", "heads 1", options(heads=1), big=False),
    Row("full", "heads 8", options(heads=8), big=False),
    Row("full", "drop_last", {"drop_last": True}, big=False),
    Row("weak", "tau 0.06", options(threshold=0.06), big=False),
    Row("cml", "tau 0", options(threshold=0.0), big=False),
    Row("cml", "lambda 0", options(wccl_weight=0.0), big=False),
]


def modules() -> list[Row]:
    """The two presets, the branch modes and the ablations, against the ``default`` preset."""
    rows = []
    for task in TASKS:
        default = f"ave_{task}_ccln.yaml"
        rows += [
            Row(task, "default (AV+V)", config=default),
            Row(task, "paper, at this table's batch and updates", config=f"ave_{task}_ccln_paper.yaml"),
        ]
        rows += [Row(task, f"branch {mode}", options(branch=mode), config=default) for mode in ("AV", "AV+A", "AV+V+A")]
        left_out = ["agva", "bilstm", "self_attention", "fusion", "sbi"]
        if task != "cml":
            left_out += ["fee", "integration"]
        rows += [Row(task, f"without {name}", options(without=name), config=default) for name in left_out]
        if task == "cml":
            rows.append(Row(task, "trained strict", {"cml_mode": "strict"}, config=default))
    return rows


def presets() -> list[Row]:
    """The ``paper`` preset with the batch and the updates that the paper prints, against the ``default`` preset."""
    return [
        row
        for task in TASKS
        for row in (
            Row(task, "default", config=f"ave_{task}_ccln.yaml"),
            Row(task, "paper, its own batch and updates", config=f"ave_{task}_ccln_paper.yaml", whole=True),
        )
    ]


def config_of(row: Row, seed: int, arguments: argparse.Namespace) -> TrainConfig:
    """The training of a row: the start, what differs, and as many epochs as make up the updates, unless it is whole."""
    settings: dict[str, Any] = yaml.safe_load((ROOT / "configs" / row.config).read_text()) if row.config else {}
    if not row.whole:
        settings = {**settings, "batch_size": arguments.batch_size, "epochs": 1}
    chosen = {**settings.pop("options", {}), "width": arguments.width, **row.settings.get("options", {})}
    settings |= {key: value for key, value in row.settings.items() if key != "options"}
    config = TrainConfig(
        store=arguments.store,
        out=arguments.work
        / f"{arguments.table}_{row.task}"
        / row.name.replace("/", "_").replace(" ", "_")
        / f"seed-{seed}",
        **{**settings, "task": row.task},
        options=chosen,
        seed=seed,
        device="cpu",
        threads=arguments.threads,
    )
    if row.whole:
        return config
    store = open_store(config.store)
    updates = len(plan(windows_of(store.path, tuple(train_clips(store, config))), config, 1))
    epochs = max(1, round(arguments.updates / updates))
    return replace(config, epochs=epochs, validate_every=max(1, epochs // LOOKS))


@cache
def windows_of(path: Path, clips: tuple[int, ...]) -> Windows:
    """The windows of some clips; hundreds of runs share a few sets."""
    return Windows(open_store(path), clips, WINDOW)


def settings_of(config: TrainConfig) -> str:
    """What decides the outcome of a run, in words: its configuration and the content of its store."""
    settings = {key: value for key, value in asdict(config).items() if key not in ("store", "out", "threads")}
    return json.dumps({**settings, "store": open_store(config.store).checksum}, sort_keys=True, default=str)


def deciding(settings: str) -> dict[str, Any]:
    """What `settings_of` says, in this version or an earlier one, without the defaults."""
    usual = json.loads(json.dumps(asdict(TrainConfig(Path(), Path())), default=str))
    found = {key: value for key, value in json.loads(settings).items() if value != usual.get(key, ...)}
    options, removed = found.get("options", {}), CCLNOptions.removed
    return {**found, "options": {key: value for key, value in options.items() if removed.get(key, ...) != value}}


def trainable(row: Row) -> bool:
    """Whether CCLN still has the options that the row tries."""
    sizes: dict[str, Any] = {"audio_dim": 8, "visual_dim": 8, "grid": (2, 2), "num_classes": 2}
    try:
        with torch.device("meta"):
            build_model("ccln", **sizes, task=row.task, **row.settings.get("options", {}))
    except AvelError:
        return False
    return True


Hits = dict[str, Any]  # what was right in every video of both splits, and what else is known of a run


def run(config: TrainConfig) -> Hits:
    """Train, and score every video of both splits."""
    torch.set_num_threads(config.threads)
    result = train(config)
    model = load(config.out)
    store = open_store(config.store)

    hits: Hits = {
        "updates": result.metrics[-1]["updates"],
        "epoch": result.best_epoch,
        "settings": settings_of(config),
        "commit": json.loads((config.out / "run.json").read_text())["commit"],  # a resumed run keeps its own
    }
    for split in ("val", "test"):
        windows = Windows(store, task_split(store, split, config.task), config.window)
        if config.task == "cml":
            for mode in MODES:
                right = located(model.network, windows, mode, batch_size=64)
                hits |= {f"{split}_{mode}_{direction}": right[direction] for direction in DIRECTIONS}
        else:
            right_segments = [
                (output.labels() == batch.target.labels).sum(1)
                for batch, output in outputs(model.network, windows.batches(64))
            ]
            hits[f"{split}_right"] = torch.cat(right_segments).numpy().astype(np.uint8)
    shutil.rmtree(config.out)
    return hits


def tables(hits: Sequence[Hits], split: str, mode: str) -> tuple[np.ndarray, np.ndarray]:
    """(S, N) right answers and (S, N) questions of each seed and video."""
    if f"{split}_right" in hits[0]:
        right = np.stack([each[f"{split}_right"] for each in hits])
        return right, np.full(right.shape, WINDOW)
    both = [[each[f"{split}_{mode}_{direction}"] for direction in DIRECTIONS] for each in hits]
    right = np.sum(both, axis=1)
    return right, np.full(right.shape, len(DIRECTIONS))


def summary(row: Row, hits: dict[int, Hits], start: dict[int, Hits], start_mode: str) -> dict[str, Any]:
    """A row of the results. Its difference to the start is over the seeds that both have."""
    mode = row.settings.get("cml_mode", "joint")
    line: dict[str, Any] = {"task": row.task, "name": row.name, "settings": row.settings, "config": row.config}
    line |= {"seeds": sorted(hits), "updates": int(next(iter(hits.values()))["updates"])}
    line |= {"epochs": [of["epoch"] for of in hits.values()], "commits": sorted({of["commit"] for of in hits.values()})}
    shared = sorted(set(hits) & set(start))
    for split in ("val", "test"):
        right, asked = tables(list(hits.values()), split, mode)
        each = (right.sum(1) / asked.sum(1)).tolist()
        line[split] = {"mean": mean(each), "spread": stdev(each) if len(each) > 1 else None, "each": each}
        if hits is not start and shared:
            one, other = [hits[seed] for seed in shared], [start[seed] for seed in shared]
            interval = paired_interval(*tables(one, split, mode), *tables(other, split, start_mode))
            line[split]["difference"] = [interval.value, interval.low, interval.high]
        if row.task == "cml":
            line[split] |= {
                f"{kind}_{direction}": [float(one[f"{split}_{kind}_{direction}"].mean()) for one in hits.values()]
                for kind in MODES
                for direction in DIRECTIONS
            }
    return line


def baselines_of(store_path: Path, tasks: Sequence[str]) -> dict[str, dict[str, dict[str, float]]]:
    """Scores of the trivial baselines, by task and split."""
    store = open_store(store_path)
    found: dict[str, dict[str, dict[str, float]]] = {}
    for task in tasks:
        windows = {split: Windows(store, task_split(store, split, task), WINDOW) for split in ("train", "val", "test")}
        found[task] = {
            split: located_baselines(windows["train"], windows[split]).values
            if task == "cml"
            else segment_baselines(windows[split].labels.numpy(), len(store.classes))
            for split in ("val", "test")
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True, help="store of simulated features")
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--table", choices=("choices", "modules", "paper"), required=True)
    parser.add_argument("--out", type=Path, help="results file; results/study_TABLE.json unless given")
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--rows", nargs="+", help="only these rows, and the first of each task")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--updates", type=int, default=1500)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    arguments = parser.parse_args()
    arguments.out = arguments.out or ROOT / "results" / f"study_{arguments.table}.json"
    table = {"choices": CHOICES, "modules": modules(), "paper": presets()}[arguments.table]
    rows = [row for row in table if row.task in arguments.tasks]
    firsts = {task: next(row for row in rows if row.task == task) for task in arguments.tasks}
    if arguments.rows:
        rows = [row for row in rows if row.name in arguments.rows or row == firsts[row.task]]
    # Seed by seed, the big choices first: a study that is cut short has seen as much as it could.
    jobs = [(row, seed) for big in (True, False) for seed in arguments.seeds for row in rows if row.big is big]
    jobs = [(row, seed) for row, seed in jobs if row.big or seed == arguments.seeds[0]]
    kept = arguments.out.with_suffix(".npz")
    hits = read(kept)
    for row, seed in jobs:
        of = hits.get(f"{row.task}: {row.name}", {}).get(seed)
        if of and deciding(of["settings"]) != deciding(settings_of(config_of(row, seed, arguments))):
            parser.error(f"{kept} holds {row.task}: {row.name}, seed {seed}, of other settings: give another --out")
    jobs = [(row, seed) for row, seed in jobs if seed not in hits.get(f"{row.task}: {row.name}", {})]
    gone = [row for row in rows if not trainable(row)]
    for row in gone:
        if any(each == row for each, _ in jobs):
            print(f"{row.task}: {row.name} is not trained: this option was removed. The tag {TAG} still has it")
    jobs = [(row, seed) for row, seed in jobs if row not in gone]
    store = open_store(arguments.store)
    about = {
        "title": f"{store.origin}: {'the paper preset' if arguments.table == 'paper' else arguments.table} of CCLN",
        **birth(),  # before the runs: the code may move on while they go
        "grid": list(store.grid),
        "visual_dim": store.visual_dim,
        "width": arguments.width,
        "batch_size": arguments.batch_size,
        "videos": {
            f"{task} {split}": len(task_split(store, split, task))
            for task in arguments.tasks
            for split in ("train", "val", "test")
        },
        "events": len(events(Windows(store, task_split(store, "test", "cml"), WINDOW))),
        "baselines": baselines_of(arguments.store, arguments.tasks),
    }

    def write_table() -> None:
        write_file(arguments.out, json.dumps({**about, "rows": lines(rows, hits)}, indent=1) + "\n")

    write_table()
    began = time.perf_counter()
    with ProcessPoolExecutor(arguments.processes, multiprocessing.get_context("forkserver")) as pool:
        running = {pool.submit(run, config_of(row, seed, arguments)): (row, seed) for row, seed in jobs}
        for number, future in enumerate(as_completed(running), start=1):
            row, seed = running[future]
            hits.setdefault(f"{row.task}: {row.name}", {})[seed] = future.result()
            write(kept, hits)
            write_table()
            left = (time.perf_counter() - began) / number * (len(jobs) - number) / 60
            print(f"{number}/{len(jobs)} {row.task}: {row.name}, seed {seed}; about {left:.0f} min left", flush=True)


def lines(rows: Sequence[Row], hits: dict[str, dict[int, Hits]]) -> list[dict[str, Any]]:
    """The finished rows, each compared with the first of its task."""
    found = []
    for row in rows:
        first = next(other for other in rows if other.task == row.task)
        of, start = hits.get(f"{row.task}: {row.name}"), hits.get(f"{first.task}: {first.name}")
        if of and start:
            found.append(summary(row, of, start, first.settings.get("cml_mode", "joint")))
    return found


def read(file: Path) -> dict[str, dict[int, Hits]]:
    """What each run had right, by row and seed."""
    hits: dict[str, dict[int, Hits]] = {}
    if file.is_file():
        for key, value in np.load(file).items():
            row, seed, name = key.split("|")
            hits.setdefault(row, {}).setdefault(int(seed), {})[name] = value if value.ndim else value.item()
    return {row: dict(sorted(of.items())) for row, of in hits.items()}


def write(file: Path, hits: dict[str, dict[int, Hits]]) -> None:
    """Write what `read` reads."""
    flat = {
        f"{row}|{seed}|{name}": value
        for row, of in hits.items()
        for seed, each in of.items()
        for name, value in each.items()
    }
    with replacing(file) as temporary, open(temporary, "wb") as opened:
        np.savez_compressed(opened, allow_pickle=False, **flat)


if __name__ == "__main__":
    main()
