"""How fast avel makes AVE's kind of features: VGG-19 beside the machine's own speed, decoding, and a whole clip.

    python benchmarks/extract.py

This prints a table and writes results/extract.json. VGG-19 runs on all frames of the clip, once in the batches of
`avel extract` and once with one call per frame, by turns in the same run. Its share compares its multiply-adds per
second with those of a large matrix product of the same precision on the same processor. Weights are random, because
speed does not depend on them. bfloat16 takes ten times as long on a processor without instructions for it, so there
only the network is timed, on a few frames.

    python benchmarks/extract.py --device cuda --bfloat16-frames 160 --results results/extract_cuda.json

does the same on a GPU. The last line estimates how long AVE's 4143 clips take in one process.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from birth import ROOT, birth

from avel.devices import device
from avel.errors import AvelError
from avel.features.segments import VisualSegments, extract_clip
from avel.features.vgg19 import BLOCKS, PRECISIONS, Vgg19, multiply_adds
from avel.features.vggish import Vggish
from avel.features.video import open_media
from avel.files import write_file

sys.path.insert(0, str(ROOT / "tests"))
from media import write_video
from random_weights import digest, random_stack, random_vggish, write_keras, write_vggish

SEGMENT_FRAMES = 16
AVE_CLIPS = 4143  # ten seconds each


class Pictures:
    """A visual extractor without the network: it only decodes, chooses and resizes frames."""

    kind, name, tag, options = "visual", "pictures", "pictures-0", {}
    frame_size, frames_per_segment, grid, dim = Vgg19.frame_size, SEGMENT_FRAMES, (1, 1), 1
    resize = Vgg19.resize

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        return np.zeros((len(frames) // SEGMENT_FRAMES, 1, 1, 1), dtype=np.float32)


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def one_by_one(network: Vgg19, frames: np.ndarray) -> None:
    """The obvious way: one call of the network per frame."""
    for index in range(len(frames)):
        network.block5_pool(frames[index : index + 1])


def decode_all(video: Path) -> None:
    with open_media(video) as media:
        for _ in media.decode():
            pass


def decode_and_resize(video: Path, num_segments: int) -> None:
    pictures = VisualSegments(Pictures(), 1.0)
    with open_media(video, audio=False) as media:
        for moment, frame in media.decode():
            pictures.push(moment, frame)
    pictures.finish(num_segments)


def measure(
    ways: dict[str, Callable[[], object]], precision: str, sides: list[int], repeats: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of each way in each turn. The ways take turns, so that a busy moment of the machine affects all of them.

    "product" is the seconds per multiply-add in the best product of two square matrices in that turn.
    """
    matrices = [torch.randn(side, side).to(device, PRECISIONS[precision]) for side in sides]
    found: dict[str, list[float]] = {name: [] for name in [*ways, "product"]}
    for _ in range(repeats):
        products = []
        for name, work in ways.items():
            found[name].append(seconds(work))
            for matrix in matrices * 3:
                # Reading one number of the product makes a GPU finish it.
                products.append(seconds(lambda matrix=matrix: float((matrix @ matrix)[0, 0])) / len(matrix) ** 3)
        found["product"].append(min(products))
    return found


def ratio(found: dict[str, list[float]], one: str, other: str) -> float:
    """How many times as long one way takes as the other in the same turn: the median over the turns."""
    return median(here / there for here, there in zip(found[one], found[other], strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=10, help="length of the test clip")
    parser.add_argument("--size", type=int, nargs=2, default=[640, 360], help="its width and height")
    parser.add_argument("--repeats", type=int, default=3, help="number of turns; the median counts")
    parser.add_argument("--bfloat16-frames", type=int, default=16, help="frames to time in bfloat16, whole segments")
    parser.add_argument("--sides", type=int, nargs="+", default=[1024, 2048, 4096], help="sides of the square matrices")
    parser.add_argument("--device", default="cpu", help="where the networks run: cpu, cuda, cuda:1, mps or auto")
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "extract.json")
    arguments = parser.parse_args()

    try:
        place = device(arguments.device)
    except AvelError as error:
        parser.error(str(error))
    number = arguments.seconds * SEGMENT_FRAMES
    frames = np.random.default_rng(0).integers(0, 256, (number, 224, 224, 3), dtype=np.uint8)
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        keras = write_keras(Path(folder) / "vgg19.h5", random_stack(BLOCKS, 3))
        state = {name: value.contiguous() for name, value in random_vggish().items()}
        torchvggish = write_vggish(Path(folder) / "vggish.pth", state)
        sound = Vggish(str(torchvggish), digest(torchvggish))
        sound.to(place)
        video = write_video(
            Path(folder) / "clip.mp4",
            seconds=arguments.seconds,
            frame_rate=25,
            size=tuple(arguments.size),
            sample_rate=44_100,
            key_frames=50,
            noise=4,
        )
        decoding = min(seconds(lambda: decode_all(video)) for _ in range(arguments.repeats))
        resizing = min(seconds(lambda: decode_and_resize(video, arguments.seconds)) for _ in range(arguments.repeats))
        for precision, of in (("float32", frames), ("bfloat16", frames[: arguments.bfloat16_frames])):
            network = Vgg19(weights_file=str(keras), weights_sha=digest(keras), precision=precision)
            network.to(place)
            ways: dict[str, Callable[[], object]] = {"batched": partial(network, of)}
            if precision == "float32":
                ways["whole clip"] = partial(extract_clip, video, network, sound)
                ways["frame by frame"] = partial(one_by_one, network, of)
            network.block5_pool(frames[:2])  # the first call is slower
            # Without instructions for bfloat16, a product at 2048 takes a minute.
            sides = arguments.sides if precision == "float32" else [512]
            found = measure(ways, precision, sides, arguments.repeats, place)
            fewest = min(found["batched"])
            rows[precision] = {
                "frames": len(of),
                "product_gflops": 2e-9 / min(found["product"]),
                "seconds": fewest,
                "frames_per_second": len(of) / fewest,
                "real_time_factor": fewest * SEGMENT_FRAMES / len(of),
                "share_of_product": multiply_adds() * len(of) * ratio(found, "product", "batched"),
            }
            if precision == "float32":
                rows[precision] |= {
                    "faster_than_frame_by_frame": ratio(found, "frame by frame", "batched"),
                    "whole_clip_over_vgg19": ratio(found, "whole clip", "batched"),
                    "hours_for_ave": min(found["whole clip"]) * 10 / arguments.seconds * AVE_CLIPS / 3600,
                }
            rows[precision]["turns"] = found
    content = {
        "title": f"VGG-19 and VGGish features of a clip of {arguments.seconds} s on {place}, random weights",
        "device": torch.cuda.get_device_name(place) if place.type == "cuda" else str(place),
        **birth(),
        "threads": torch.get_num_threads(),
        "clip": {"seconds": arguments.seconds, "size": arguments.size, "frame_rate": 25, "frames_used": number},
        "gigamultiply_adds_per_frame": multiply_adds() / 1e9,
        "decode_seconds": decoding,
        "decode_choose_and_resize_seconds": resizing,
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "precisions": rows,
    }
    arguments.results.parent.mkdir(exist_ok=True)
    write_file(arguments.results, json.dumps(content, indent=1) + "\n")
    print(f"decoding {decoding:.2f} s; with choosing and resizing {resizing:.2f} s")
    for precision, row in rows.items():
        print(f"{precision}:")
        for name, value in row.items():
            if name != "turns":
                print(f"  {name.replace('_', ' '):<28} {value:10.3f}")


if __name__ == "__main__":
    main()
