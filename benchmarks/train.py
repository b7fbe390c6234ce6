"""How fast CCLN trains: an epoch of task full at AVE's size, compared with the machine's matrix product.

    avel data simulate --out simulated && avel data import-ave simulated --out ave-size
    avel data simulate --out small --grid 4 4 --visual-dim 64 --train-videos 800 --val-videos 800 --test-videos 2000
    avel data import-ave small --out small-store
    python benchmarks/train.py --store ave-size --small small-store

The timed epoch is that of `avel train`: it reads and casts the features, computes and updates. The operations of one
step, forward and backward, are counted by torch.utils.flop_counter, and those of the LSTMs, which it does not know, by
a formula. The matrix product is measured before and after every epoch, because the speed of a shared machine varies.
"""

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import torch
from birth import ROOT, birth
from lightning_fabric import Fabric
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from avel.config import TrainConfig
from avel.data.loader import Windows
from avel.data.store import open_store
from avel.files import write_file
from avel.memory import keep_freed_memory
from avel.models import build_model
from avel.training import fit_epoch, plan, train

BATCH, WINDOW = 128, 10
PRECISIONS = ("32-true", "bf16-mixed")


def product_rate(dtype: torch.dtype, seconds: float = 1.0) -> float:
    """Operations per second in a product of two matrices of 2048 x 2048."""
    one, other = torch.randn(2, 2048, 2048).to(dtype)
    one @ other
    products, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        one @ other
        products += 1
    return products * 2 * 2048**3 / (time.perf_counter() - began)


def lstm_operations(network: nn.Module, tokens: int, raw: set[str]) -> int:
    """Operations of all LSTMs, forward and backward: input and hidden state times weights, and their two gradients.

    Args:
        tokens: windows times segments.
        raw: names of the LSTMs whose input is data and needs no gradient.
    """
    total = 0
    for name, module in network.named_modules():
        if isinstance(module, nn.LSTM):
            of_input, of_state = (4 * module.hidden_size * width for width in (module.input_size, module.hidden_size))
            passes = 3 * (of_input + of_state) - (of_input if name in raw else 0)
            total += 2 * passes * tokens * (2 if module.bidirectional else 1)
    return total


def operations(network: Any, windows: Windows) -> dict[str, int]:
    """Operations of one training step."""
    batch = windows.batch(range(BATCH))
    with FlopCounterMode(display=False) as counter:
        network.loss(network(batch.audio, batch.visual).parts, batch.target)["total"].backward()
    lstm = lstm_operations(network, BATCH * WINDOW, {"fusion.audio.0.lstm"})
    return {"counted": counter.get_total_flops(), "lstm": lstm}


def epochs(store_path: Path, precision: str, number: int, threads: int) -> dict[str, Any]:
    """Time whole epochs."""
    torch.set_num_threads(threads)
    keep_freed_memory()  # as `train` does
    store = open_store(store_path)
    windows = Windows(store, store.split("train"), WINDOW)
    sizes: dict[str, Any] = {"audio_dim": store.audio_dim, "visual_dim": store.visual_dim, "grid": store.grid}
    torch.manual_seed(0)
    network = build_model("ccln", num_classes=len(store.classes), task="full", **sizes)
    found: dict[str, Any] = {"operations_of_a_step": operations(network, windows)}
    network.zero_grad(set_to_none=True)
    config = TrainConfig(store=store_path, out=Path(), batch_size=BATCH, precision=precision)  # type: ignore[arg-type]
    fabric = Fabric(accelerator="cpu", devices=1, precision=precision)  # type: ignore[arg-type]
    model, optimizer = fabric.setup(network, torch.optim.Adam(network.parameters(), lr=1e-3, fused=True))
    fit_epoch(fabric, model, optimizer, windows, plan(windows, config, 0)[:3], config)  # to warm up
    rates = [product_rate(torch.float32)]
    found["seconds"], found["share"] = [], []
    per_window = sum(found["operations_of_a_step"].values()) / BATCH
    for epoch in range(1, number + 1):
        began = time.perf_counter()
        fit_epoch(fabric, model, optimizer, windows, plan(windows, config, epoch), config)
        found["seconds"].append(time.perf_counter() - began)
        rates.append(product_rate(torch.float32))
        rate = per_window * len(windows) / found["seconds"][-1]
        found["share"].append(rate / mean(rates[-2:]))
        print(f"{precision}: {found['seconds'][-1]:.1f} s, {found['share'][-1]:.1%} of the product's rate", flush=True)
    found["windows"] = len(windows)
    found["float32_product_rates"] = rates
    if precision != "32-true":
        found["own_product_rate"] = product_rate(torch.bfloat16)
    return found


def accuracies(store: Path, precision: str, seeds: list[int], number: int, threads: int) -> dict[str, Any]:
    """Validation accuracy of complete trainings."""
    with tempfile.TemporaryDirectory() as folder:
        each = []
        for seed in seeds:
            out = Path(folder) / f"{seed}"
            config = TrainConfig(store=store, out=out, epochs=number, seed=seed, device="cpu", threads=threads)
            settings = {**vars(config), "precision": precision, "options": {"width": 64}, "validate_every": 4}
            each.append(train(TrainConfig(**settings)).best_accuracy)
            shutil.rmtree(out)
            print(f"{precision}, seed {seed}: {each[-1]:.4f}", flush=True)
    return {"each": each, "mean": mean(each), "spread": stdev(each)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True, help="store of AVE's size")
    parser.add_argument("--small", type=Path, required=True, help="small store, on which the accuracies are compared")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--bf16-epochs", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--small-epochs", type=int, default=20)
    arguments = parser.parse_args()
    results: dict[str, Any] = {"title": f"{open_store(arguments.store).origin}: training CCLN, task full", **birth()}
    for precision, number in zip(PRECISIONS, (arguments.epochs, arguments.bf16_epochs), strict=True):
        results[precision] = epochs(arguments.store, precision, number, arguments.threads)
        results[precision]["median_seconds"] = median(results[precision]["seconds"])
        results[precision]["median_share"] = median(results[precision]["share"])
    for precision in PRECISIONS:
        of = accuracies(arguments.small, precision, arguments.seeds, arguments.small_epochs, arguments.threads)
        results[precision]["small_accuracy"] = of
    results["small_updates"] = arguments.small_epochs * -(-len(open_store(arguments.small).split("train")) // 32)
    results["threads"] = arguments.threads
    write_file(ROOT / "results" / "train.json", json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
