"""Does the answer of cross-modality localization leak from the query stream to the searched stream?

    python benchmarks/leak.py --ave FOLDER --store small-store --work runs/leak

FOLDER holds AVE's Annotations.txt and ``*_order_match.h5``. The first parts train and test on noise with AVE's real
starts and lengths: a model that scores above the trivial baselines there got the answer from the query stream. As a
control, the audio of the same noise is 0 outside the event, a leak that the test must show. The last part takes a model
trained ``joint`` on simulated features and fuses the searched stream with the query stream of another video. The loss
of accuracy is what the aligned query stream had contributed.
"""

import argparse
import json
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from birth import ROOT, birth
from torch import Tensor, nn

from avel.checkpoint import load
from avel.cml import DIRECTIONS, MODES, Direction, Mode, events, located, located_baselines
from avel.config import TrainConfig
from avel.data.ave.files import CLASSES, SEGMENTS, event_mask
from avel.data.ave.survey import survey
from avel.data.loader import Windows, task_split
from avel.data.store import Settings, Store, StoredClip, checksum, open_store
from avel.data.store_writing import write_index, write_shard
from avel.files import write_file
from avel.models.layers import distances
from avel.training import plan, train
from avel.types import DistanceOutput

GRID, WIDTH = (2, 2), 16  # of the noise


@dataclass(frozen=True)
class Part:
    """What to train on, and how.

    Attributes:
        title: of the table; empty takes the store's own.
        modes: the modes to train.
        options: options of the network.
        leaking: as in `noise_store`.
    """

    title: str = ""
    modes: tuple[Mode, ...] = MODES
    options: dict[str, Any] = field(default_factory=dict)
    leaking: bool = False


NOISE = "Noise under AVE's events, not AVE"
ALL_PAIRS = {"cml_pairs": "all"}  # pairs of different seconds can teach a distance that depends on the position
PARTS = {
    "noise": Part(NOISE),
    "noise_all": Part(f"{NOISE}; trained on all T x T pairs", ("joint",), ALL_PAIRS),
    "control_synchronous": Part(f"{NOISE}; sound is 0 outside the event, a leak by design", ("joint",), leaking=True),
    "control_all": Part(
        f"{NOISE}; sound is 0 outside the event, trained on all T x T pairs", options=ALL_PAIRS, leaking=True
    ),
    "simulated": Part(),
}


def noise_store(ave: Path, out: Path, seed: int, *, leaking: bool = False) -> Store:
    """A store with AVE's own events and match splits, whose features are independent Gaussian numbers.

    Args:
        ave: folder of AVE's files.
        out: folder to write.
        seed: of the numbers.
        leaking: the sound is 0 outside the event, and so tells where it is.
    """
    found = survey(ave)
    splits = {name: set(rows.tolist()) for name, rows in found.splits.items() if name.endswith("_match")}
    random = np.random.default_rng(seed)
    rows = len(found.annotations) * SEGMENTS
    visual = random.standard_normal((rows, *GRID, WIDTH)).astype(np.float16)
    audio = random.standard_normal((rows, WIDTH)).astype(np.float32)
    if leaking:
        audio *= event_mask(found.annotations).reshape(rows, 1)
    out.mkdir(parents=True, exist_ok=True)
    write_shard(out / "noise.safetensors", visual, audio)
    extractors = {kind: {"name": "noise", "tag": f"noise-{seed}", "options": {}} for kind in ("visual", "audio")}
    title = f"noise (seed {seed}) under AVE's events, not AVE"
    settings = Settings(1.0, "time", extractors, GRID, WIDTH, WIDTH, title)
    clips = []
    for each in found.annotations:
        where = slice(each.row * SEGMENTS, (each.row + 1) * SEGMENTS)
        clips.append(
            StoredClip(
                id=each.clip_id,
                video=each.video,
                duration=float(SEGMENTS),
                spans=(each.span,) if each.span.end > each.span.start else (),
                splits=tuple(name for name, members in splits.items() if each.row in members),
                shard="noise.safetensors",
                row=where.start,
                segments=SEGMENTS,
                checksum=checksum(visual[where], audio[where]),
                audio_valid=True,
                source="",
                bad_packets=0,
            )
        )
    write_index(out, settings, CLASSES, ["noise.safetensors"], clips)
    return open_store(out)


def trained(store: Store, out: Path, mode: Mode, seed: int, updates: int, options: dict[str, Any]) -> Any:
    """Train a network in one mode; validation chooses the epoch."""
    config = TrainConfig(
        store=store.path,
        out=out,
        task="cml",
        cml_mode=mode,
        seed=seed,
        device="cpu",
        threads=1,
        options=options,
    )
    each = len(plan(Windows(store, task_split(store, "train", "cml"), SEGMENTS), config, 1))
    epochs = max(1, round(updates / each))
    train(TrainConfig(**{**vars(config), "epochs": epochs, "validate_every": max(1, epochs // 12)}))
    return load(out).network


def shares(network: Any, windows: Windows) -> dict[str, float]:
    """Share of events found exactly, for each mode and direction."""
    found = {mode: located(network, windows, mode, batch_size=64) for mode in MODES}
    return {f"{mode} {direction}": float(found[mode][direction].mean()) for mode in MODES for direction in DIRECTIONS}


class FusedWithAnother(nn.Module):
    """A network of task cml whose searched stream is fused with the query stream of another video."""

    def __init__(self, network: Any, windows: Windows, partners: list[int], direction: Direction) -> None:
        """``partners``: for each window that is asked, in that order, the one whose query stream it is fused with."""
        super().__init__()
        self.network, self.windows, self.partners, self.direction = network, windows, iter(partners), direction
        self.finals: dict[str, Tensor] = {}
        for name, layers in network.integration.items():
            layers.register_forward_hook(lambda module, inputs, output, name=name: self.finals.update({name: output}))

    def forward(self, audio: Tensor, visual: Tensor) -> DistanceOutput:
        partners = self.windows.batch([next(self.partners) for _ in range(len(audio))])
        self.network(audio, visual)
        query = self.finals["audio" if self.direction == "a2v" else "visual"]
        if self.direction == "a2v":
            self.network(partners.audio, visual)
            return DistanceOutput(distances(self.finals["visual"], query))
        self.network(audio, partners.visual)
        return DistanceOutput(distances(query, self.finals["audio"]))


def fused_with_another_video(network: Any, windows: Windows, seed: int) -> dict[str, float]:
    """As `shares` in mode joint, but the searched stream is fused with the query stream of another video."""
    asked = list(events(windows))
    ring = np.random.default_rng(seed).permutation(asked).tolist()
    partner_of = dict(zip(ring, [*ring[1:], ring[0]], strict=True))
    found = {}
    for direction in DIRECTIONS:
        fused = FusedWithAnother(network, windows, [partner_of[index] for index in asked], direction)
        hits = located(fused, windows, "joint", batch_size=64)
        found[f"joint, searched stream fused with another video: {direction}"] = float(hits[direction].mean())
    return found


def gathered(rows: list[dict[str, float]]) -> dict[str, Any]:
    """Mean, spread and the value of each seed, by name."""
    each = {name: [row[name] for row in rows] for name in rows[0]}
    return {
        name: {"mean": mean(of), "spread": stdev(of) if len(of) > 1 else None, "each": of} for name, of in each.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ave", type=Path, required=True, help="folder with AVE's Annotations.txt and order files")
    parser.add_argument("--store", type=Path, required=True, help="store of simulated features")
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs")
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=PARTS,
        default=[*PARTS],
        help="parts to run; results of the others stay as they are",
    )
    parser.add_argument("--updates", type=int, default=1500)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    file = ROOT / "results" / "leak.json"
    results = json.loads(file.read_text()) if file.is_file() else {}
    torch.set_num_threads(1)
    for name in arguments.parts:
        about = {**birth(), "seeds": arguments.seeds, "updates": arguments.updates, "width": arguments.width}
        part = PARTS[name]
        rows: dict[str, list[dict[str, float]]] = {mode: [] for mode in part.modes}
        for seed in arguments.seeds:
            if part.title:
                store = noise_store(arguments.ave, arguments.work / f"{name}-{seed}", seed, leaking=part.leaking)
            else:
                store = open_store(arguments.store)
            windows = Windows(store, task_split(store, "test", "cml"), SEGMENTS)
            for mode in part.modes:
                out = arguments.work / f"{name}-{mode}-{seed}"
                options = {"width": arguments.width, **part.options}
                network = trained(store, out, mode, seed, arguments.updates, options)
                row = shares(network, windows)
                if name == "simulated" and mode == "joint":
                    row |= fused_with_another_video(network, windows, seed)
                rows[mode].append(row)
                print(name, "trained", mode, seed, {key: round(value, 3) for key, value in row.items()}, flush=True)
        trivial = located_baselines(Windows(store, task_split(store, "train", "cml"), SEGMENTS), windows)
        results[name] = {
            **about,
            "title": part.title or store.origin,
            "trained": {mode: gathered(of) for mode, of in rows.items()},
            "baselines": trivial.values,
            "events": trivial.counted,
        }
        ordered = {each: results[each] for each in PARTS if each in results}
        write_file(file, json.dumps(ordered, indent=1) + "\n")


if __name__ == "__main__":
    main()
