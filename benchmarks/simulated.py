"""How hard the simulated set is, and how close its audio features are to VGGish's: simulated, not AVE.

    python benchmarks/simulated.py --seeds 0 1 2

This makes the features in memory, one video at a time, and keeps the means over the cells. It fits logistic regression
on single segments, the probe that set the difficulty (no network of avel was used for that), and writes
results/simulated.json. The real VGGish features of AVE's background-only videos are read from AVEL_TEST_DATA (../shared
by default) if they are there.
"""

import argparse
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from birth import ROOT, birth

from avel.baselines import fit_logistic, standardize
from avel.cli import bars, mean_and_spread
from avel.data.ave.files import CLASSES
from avel.types import Progress
from avel.worlds.simulated.features import Scene, World, make_audio, make_visual, make_world
from avel.worlds.simulated.plan import VERSION, SimulatedPlan, plan
from avel.worlds.simulated.simulate import make_scenes

SIZES: dict[str, dict[str, Any]] = {
    "full size, 7 x 7 x 512": {"grid": (7, 7), "visual_dim": 512, "plan": {}},
    "small, 4 x 4 x 64": {
        "grid": (4, 4),
        "visual_dim": 64,
        "plan": {"train_videos": 800, "val_videos": 800, "test_videos": 2000},
    },
}
PENALTIES = (3e-2, 1e-2, 1e-3)
COUNTS = (1, 5, 10, 20, 50, 100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "simulated.json")
    arguments = parser.parse_args()
    probes: dict[str, list[dict[str, float]]] = {name: [] for name in SIZES}
    sound: dict[str, Any] = {}
    vision: dict[str, float] = {}
    with bars() as progress:
        for seed in arguments.seeds:
            for name, size in SIZES.items():
                made, world = plan(seed=seed, **size["plan"]), make_world(seed, size["grid"], size["visual_dim"])
                scenes, background = make_scenes(made, seed)
                audio, visual, facts = pooled(world, scenes, progress, f"{name}, seed {seed}")
                streams = {"both": np.concatenate([audio, visual], -1), "audio": audio, "visual": visual}
                row = {key: probe(values, made) for key, values in streams.items()}
                probes[name].append(row)
                print(f"seed {seed}, {name}: {row}")
                if seed == arguments.seeds[0] and name == next(iter(SIZES)):
                    sound["simulated"] = statistics(np.stack([make_audio(world, scene) for scene in background]))
                    vision = facts
    real = Path(os.environ.get("AVEL_TEST_DATA") or ROOT.parent / "shared") / "ave" / "audio_feature_noisy.h5"
    if real.is_file():
        with h5py.File(real) as file:
            sound["AVE"] = statistics(file["avadataset"][:])
    content = {
        "title": f"The simulated set, version {VERSION}: simulated, not AVE",
        **birth(),
        "seeds": arguments.seeds,
        "probe": {
            name: {stream: mean_and_spread([row[stream] for row in rows]) for stream in rows[0]}
            for name, rows in probes.items()
        },
        "probe_each_seed": probes,
        "sound_of_background_videos": sound,
        "vision": vision,
    }
    arguments.results.write_text(json.dumps(content, indent=1) + "\n")


def pooled(
    world: World, scenes: list[Scene], progress: Progress, stage: str
) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    """Audio (N, T, 128), visual averaged over the cells (N, T, Dv), and statistics of the cells."""

    def make(scene: Scene) -> tuple[np.ndarray, np.ndarray, float, float]:
        visual = make_visual(world, scene)
        return make_audio(world, scene), visual.mean((1, 2)), float((visual == 0).mean()), float(visual.max())

    made = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done, each in enumerate(pool.map(make, scenes), start=1):
            made.append(each)
            progress(stage, done, len(scenes))
    audio, visual, zeros, largest = zip(*made, strict=True)
    facts = {"zeros": float(np.mean(zeros)), "maximum": max(largest), "mean": float(np.mean(visual))}
    return np.stack(audio), np.stack(visual), facts


def probe(values: np.ndarray, made: SimulatedPlan) -> float:
    """Test accuracy of multinomial logistic regression on single segments of (N, T, D); val chooses the L2 penalty."""
    labels = made.labels()
    parts = {name: (values[made.splits[name]], labels[made.splits[name]]) for name in ("train", "val", "test")}
    flat = standardize(*(part[0].reshape(-1, values.shape[-1]).astype(np.float32) for part in parts.values()))
    features = dict(zip(parts, map(torch.from_numpy, flat), strict=True))
    targets = {name: torch.from_numpy(part[1].ravel()) for name, part in parts.items()}
    best = (-1.0, 0.0)
    for penalty in PENALTIES:
        weights = fit_logistic(features["train"], targets["train"], len(CLASSES) + 1, penalty)
        right = {
            name: float(((features[name] @ weights[:-1] + weights[-1]).argmax(1) == targets[name]).float().mean())
            for name in ("val", "test")
        }
        best = max(best, (right["val"], right["test"]))
    return best[1]


def statistics(audio: np.ndarray) -> dict[str, Any]:
    """Statistics of (N, T, D) features: share of zeros, size, and the spectrum of their covariance."""
    flat = audio.reshape(-1, audio.shape[-1]).astype(np.float64)
    spectrum = np.sort(np.linalg.eigvalsh(np.cov(flat.T)))[::-1]
    spectrum /= spectrum.sum()
    return {
        "zeros": float((flat == 0).mean()),
        "mean": float(flat.mean()),
        "maximum": float(flat.max()),
        "zeros_of_dimensions_deciles": np.quantile((flat == 0).mean(0), np.linspace(0, 1, 11)).round(3).tolist(),
        "first_eigenvalues": spectrum[:5].round(3).tolist(),
        **{f"variance_in_{count}": round(float(spectrum[:count].sum()), 3) for count in COUNTS},
        "variance_between_videos": float(audio.mean(1).var(0).sum() / flat.var(0).sum()),
    }


if __name__ == "__main__":
    main()
