"""Import, batches and half precision at AVE's size, beside the obvious ways to do the same.

    python benchmarks/data.py --data /tmp/simulated --work /tmp/data-benchmark

This simulates what is missing under --data (9 GB, and 8 GB for the half-precision part), prints tables and writes
results/data.json. `--parts import batches half` chooses the parts. Only root can drop the page cache; for other users
the import is measured with a warm cache, and the table says so.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from birth import ROOT, birth
from rich.table import Table

from avel.checkpoint import LoadedModel, load
from avel.cli import bars, console
from avel.config import TrainConfig
from avel.data.ave.files import FEATURES
from avel.data.ave.importing import import_ave
from avel.data.loader import Windows
from avel.data.store import open_store
from avel.evaluation import per_video, predict
from avel.models import build_model
from avel.training import train
from avel.types import BACKGROUND
from avel.worlds.simulated.simulate import simulate

BLOCK = 8 * 2**20
BATCH = 128
PARTS = ("import", "batches", "half")
SETTINGS = {"epochs": 8, "batch_size": 64, "learning_rate": 1e-3}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder for simulated AVE files, which are kept")
    parser.add_argument("--work", type=Path, required=True, help="folder for stores, on the same disk; it is emptied")
    parser.add_argument("--pairs", type=int, default=5, help="number of pairs of import and plain copy")
    parser.add_argument("--videos", type=int, default=4143, help="number of videos; fewer for a quick try")
    parser.add_argument(
        "--test-videos", type=int, default=2000, help="number of test videos in the half-precision part"
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "data.json")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    results = json.loads(arguments.results.read_text()) if arguments.results.is_file() else {}
    results["title"] = "Import and reading of simulated features with AVE's shapes: simulated, not AVE"
    with bars() as progress:
        if {"import", "batches"} & set(arguments.parts):
            simulate(arguments.data / "ave", videos=arguments.videos, progress=progress)
    if "import" in arguments.parts:
        results["import"] = {**birth(), **time_import(arguments.data / "ave", arguments.work, arguments.pairs)}
    if "batches" in arguments.parts:
        store = arguments.work / "ave"
        import_ave(arguments.data / "ave", store)
        results["batches"] = {**birth(), **time_batches(arguments.data / "ave", store)}
    if "half" in arguments.parts:
        results["half"] = {**birth(), **half_precision(arguments.data / "half", arguments.work, arguments.test_videos)}
    arguments.results.write_text(json.dumps(results, indent=1) + "\n")
    show(results)


# Import


def time_import(data: Path, work: Path, pairs: int) -> dict[str, Any]:
    """Time the import, and reading the input and writing the store's size, in turn with a cold cache."""
    files = [data / name for name in ("visual_feature.h5", "audio_feature.h5", "visual_feature_vec.h5")]
    files += [data / f"{kind}_feature_noisy.h5" for kind in ("visual", "audio")]
    store = work / "import"
    rows, peaks = [], []
    size = 0
    for _ in range(pairs):
        shutil.rmtree(store, ignore_errors=True)
        cold = drop_cache()
        seconds, peak = in_process(_import, data, store)
        peaks.append(peak)
        size = sum(file.stat().st_size for file in store.iterdir())
        shutil.rmtree(store)
        drop_cache()
        copy, _ = in_process(_copy, files, work / "copy", size)
        (work / "copy").unlink()
        rows.append({"import": seconds, "copy": copy, "ratio": seconds / copy})
    return {
        "cold_cache": cold,
        "input_bytes": sum(file.stat().st_size for file in files),
        "store_bytes": size,
        "pairs": rows,
        "ratio": statistics.median(row["ratio"] for row in rows),
        "peak_anonymous_bytes": max(peaks),
    }


def _import(data: Path, store: Path) -> None:
    import_ave(data, store)  # fsyncs every file it writes


def _copy(files: list[Path], out: Path, size: int) -> None:
    buffer = memoryview(bytearray(BLOCK))
    for file in files:
        with open(file, "rb", buffering=0) as source:
            while source.readinto(buffer):
                pass
    buffer[:] = os.urandom(BLOCK)
    with open(out, "wb", buffering=0) as target:
        for first in range(0, size, BLOCK):
            target.write(buffer[: min(BLOCK, size - first)])
        os.fsync(target.fileno())


def drop_cache() -> bool:
    """Write out and drop all cached files; False if that is not allowed."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        return False
    return True


def in_process(function: Callable[..., Any], *arguments: Any) -> tuple[float, int]:
    """Seconds of a call in a new process with everything imported, and its peak of anonymous memory, bytes."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_measured, args=(theirs, function, arguments))
    process.start()
    result: tuple[float, int] = ours.recv()
    process.join()
    return result


def _measured(pipe: Any, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.zeros(1)
    peak, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            peak[0] = max(peak[0], anonymous_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    function(*arguments)
    seconds = time.perf_counter() - began
    done.set()
    watcher.join()
    pipe.send((seconds, peak[0]))


def anonymous_bytes() -> int:
    """Memory of this process that belongs to no file, bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


# Batches


def time_batches(data: Path, store: Path, count: int = 20) -> dict[str, Any]:
    """Time shuffled float32 batches of 128 from the store, and from the float64 file as other programs read it."""
    opened = open_store(store)
    windows = Windows(opened, opened.split("train"), 10)
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(0)).tolist()
    rows = [windows.items[index][0] for index in order]  # the clip's row in the h5 file
    picks = [slice(first, first + BATCH) for first in range(0, min(len(order), count * BATCH), BATCH)]

    ours: list[float] = []
    batch = windows.batch(order[picks[0]])
    for pick in picks:  # warms the map; the file below is warmed alike
        batch = windows.batch(order[pick], batch)
    before, most = anonymous_bytes(), 0
    for pick in picks:
        began = time.perf_counter()
        batch = windows.batch(order[pick], batch)
        ours.append(time.perf_counter() - began)
        most = max(most, anonymous_bytes())
    expected = batch.visual.clone()

    fresh = []
    for pick in picks:
        began = time.perf_counter()
        windows.batch(order[pick])
        fresh.append(time.perf_counter() - began)

    wide = np.empty((BATCH, 10, *opened.grid, opened.visual_dim))
    narrow = torch.empty(wide.shape, dtype=torch.float32)
    theirs: dict[str, list[float]] = {"float64 rows, then cast": [], "float64 rows, cast by HDF5": []}
    with h5py.File(data / "visual_feature.h5") as file:
        dataset = file[FEATURES]
        for name, times in theirs.items():
            for warm in (True, False):
                for pick in picks:
                    began = time.perf_counter()
                    for place, row in enumerate(rows[pick]):
                        if name.endswith("HDF5"):
                            dataset.read_direct(narrow.numpy(), np.s_[row], np.s_[place])
                        else:
                            dataset.read_direct(wide, np.s_[row], np.s_[place])
                    if not name.endswith("HDF5"):
                        narrow.copy_(torch.from_numpy(wide))
                    if not warm:
                        times.append(time.perf_counter() - began)
    same = float((narrow[: len(expected)] - expected).abs().max() / expected.abs().max())
    first_ours, peak_ours = in_process(_first_batch, store)
    first_whole, peak_whole = in_process(_whole_file, data)
    threaded, plain = time_step(windows, order, ahead=True), time_step(windows, order, ahead=False)
    medians = {name: statistics.median(times) for name, times in theirs.items()}
    batch_bytes = batch.visual.nbytes + batch.audio.nbytes
    return {
        "batch": list(batch.visual.shape),
        "ours_seconds": statistics.median(ours),
        "ours_new_memory_seconds": statistics.median(fresh),
        "theirs_seconds": medians,
        "ratio": min(medians.values()) / statistics.median(ours),
        "extra_memory_of_batch": max(0, most - before) / batch_bytes,
        "largest_relative_difference": same,
        "copy_rate": batch.visual.nbytes / statistics.median(ours) / copy_rate(),
        "first_batch": {
            "store": {"seconds": first_ours, "peak_anonymous_bytes": peak_ours},
            "whole file": {"seconds": first_whole, "peak_anonymous_bytes": peak_whole},
        },
        "training_step_seconds": {"read, then compute": plain, "a thread reads ahead": threaded},
    }


def copy_rate() -> float:
    """Bytes per second that this machine writes when it converts float16 to float32 in memory."""
    source, target = torch.zeros(2**25, dtype=torch.float16), torch.zeros(2**25)
    times = []
    for _ in range(7):
        began = time.perf_counter()
        target.copy_(source)
        times.append(time.perf_counter() - began)
    return target.nbytes / min(times)


def time_step(windows: Windows, order: list[int], *, ahead: bool, steps: int = 6) -> float:
    """Seconds of a training step of CCLN. Its batch is read before it, or by a thread during the step before."""
    from concurrent.futures import ThreadPoolExecutor

    store = windows.store
    torch.manual_seed(0)
    sizes = {"audio_dim": store.audio_dim, "visual_dim": store.visual_dim, "grid": store.grid}
    network = build_model("ccln", **sizes, num_classes=len(store.classes), task="full").train()
    optimizer = torch.optim.Adam(network.parameters())
    times = []
    with ThreadPoolExecutor(1) as reader:
        spare = [windows.batch(order[:BATCH]), windows.batch(order[:BATCH])]
        coming = reader.submit(windows.batch, order[:BATCH], spare[0])
        for step in range(steps):
            began = time.perf_counter()
            pick = order[step * BATCH : (step + 1) * BATCH]
            if ahead:
                batch = coming.result()
                coming = reader.submit(windows.batch, pick, spare[(step + 1) % 2])
            else:
                batch = windows.batch(pick, spare[0])
            output = network(batch.audio, batch.visual)
            optimizer.zero_grad()
            network.loss(output.parts, batch.target)["total"].backward()
            optimizer.step()
            times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def _first_batch(store: Path) -> None:
    opened = open_store(store)
    next(iter(Windows(opened, opened.split("train"), 10).batches(BATCH, shuffle_seed=(0, 1))))


def _whole_file(data: Path) -> None:
    """Do what the public scripts do: read both files whole, then convert the rows of a batch to float32."""
    arrays = []
    for name in ("visual_feature.h5", "audio_feature.h5"):
        with h5py.File(data / name) as file:
            arrays.append(file[FEATURES][:])
    with h5py.File(data / "train_order.h5") as file:
        rows = np.random.default_rng(0).permutation(file["order"][:])[:BATCH]
    for array in arrays:
        torch.from_numpy(array[rows]).float()


# Half precision


def half_precision(data: Path, work: Path, test_videos: int) -> dict[str, Any]:
    """Compare the same trained weights on the stored float16 features and on their float32 originals."""
    videos = {"train_videos": 800, "val_videos": 200, "test_videos": test_videos, "background_videos": 10}
    config = TrainConfig(store=work / "half", out=work / "half-run", **SETTINGS)  # type: ignore[arg-type]
    with bars() as progress:
        simulate(data, **videos, progress=progress)  # type: ignore[arg-type]
        import_ave(data, work / "half", progress=progress)
        train(config, progress=progress)
    store, model = open_store(work / "half"), load(work / "half-run")
    clips = store.split("test")
    with bars() as progress:
        stored = predict(model, store, clips, progress=progress)
    differ, segments, names = [], 0, (*store.classes, BACKGROUND)
    largest, margins = 0.0, []
    with h5py.File(data / "visual_feature.h5") as file, torch.inference_mode():
        for prediction in stored:
            visual = torch.from_numpy(file[FEATURES][prediction.clip]).float()[None]
            exact = _probabilities(model, store.audio(prediction.clip)[None], visual)[0]
            segments += len(exact)
            largest = max(largest, float(np.abs(exact - prediction.probabilities).max()))
            ordered = np.sort(exact, -1)
            margins += (ordered[:, -1] - ordered[:, -2]).tolist()
            for t in np.flatnonzero(exact.argmax(-1) != prediction.probabilities.argmax(-1)):
                top = np.sort(exact[t])[-2:]
                one, other = (names[int(p[t].argmax())] for p in (exact, prediction.probabilities))
                place = {"clip": store.clips[prediction.clip].id, "segment": int(t)}
                differ.append({**place, "float32": one, "float16": other, "margin": float(top[1] - top[0])})
    correct, counted = per_video(stored)
    return {
        "segments": segments,
        "training": SETTINGS,
        "test_accuracy": float(correct.sum() / counted.sum()),
        "differ": len(differ),
        "share": len(differ) / segments,
        "largest_difference_of_a_probability": largest,
        "smallest_margins": sorted(margins)[:10],
        "disagreements": differ,
    }


def _probabilities(model: LoadedModel, audio: torch.Tensor, visual: torch.Tensor) -> np.ndarray:
    return model.network(audio, visual).probabilities().numpy()


def show(results: dict[str, Any]) -> None:
    """Print the measurements as a table."""
    table = Table("part", "what", "measured", title=results["title"])
    if part := results.get("import"):
        ours, copy = (statistics.median(pair[name] for pair in part["pairs"]) for name in ("import", "copy"))
        table.add_row("import", f"cold cache: {part['cold_cache']}", f"{ours:.1f} s, {part['ratio']:.2f} x the copy")
        table.add_row("", "plain read of the input and write of the store's size", f"{copy:.1f} s")
        sizes = f"{_size(part['store_bytes'])}, {_size(part['peak_anonymous_bytes'])}"
        table.add_row("", "store, peak anonymous memory", sizes)
    if part := results.get("batches"):
        rate = f"{part['copy_rate']:.0%} of this machine's speed of conversion in memory"
        table.add_row("batches", "from the store", f"{_milliseconds(part['ours_seconds'])}, {rate}")
        table.add_row("", "the same into new memory", _milliseconds(part["ours_new_memory_seconds"]))
        for name, seconds in part["theirs_seconds"].items():
            table.add_row("", name, _milliseconds(seconds))
        table.add_row("", "speed-up over the faster of these", f"{part['ratio']:.1f} x")
        table.add_row("", "memory beyond the batch", f"{part['extra_memory_of_batch']:.1%} of the batch")
        for name, first in part["first_batch"].items():
            peak = _size(first["peak_anonymous_bytes"])
            table.add_row("", f"first batch, {name}", f"{first['seconds']:.2f} s, {peak} of memory")
        for name, seconds in part["training_step_seconds"].items():
            table.add_row("", f"training step: {name}", _milliseconds(seconds))
    if part := results.get("half"):
        share = f"{part['differ']} of {part['segments']} segments, {part['share']:.4%}"
        table.add_row("half", "predicted class differs from float32's", share)
        largest, margin = part["largest_difference_of_a_probability"], part["smallest_margins"][0]
        table.add_row("", "largest difference of a probability, smallest margin", f"{largest:.1e}, {margin:.1e}")
    console().print(table)


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms"


def _size(count: float) -> str:
    return f"{count / 1e9:.2f} GB"


if __name__ == "__main__":
    main()
