"""Compare features of real files with those of OpenCV's resize, Keras, resampy and torchvggish.

    make .venv-parity/.installed
    .venv-parity/bin/python benchmarks/parity.py

This prints two tables and writes results/parity.json. avel goes its whole way from the file to the features. The
reference gets the frames and the 16-bit sound that PyAV decodes (soundfile for WAV files), and does the rest. For
scale, the tables also show the difference with FFmpeg's scaler and resampler in place of avel's. Weights are random, in
the formats of the published files.

The files are in media/ in the folder that AVEL_TEST_DATA names (../shared by default). They all have sound at 44.1 kHz,
so one of them is also resampled to other rates.
"""

import argparse
import json
import os
import sys
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from birth import ROOT, birth

from avel.features.audio_samples import read_waveform
from avel.features.recipe import Recipe
from avel.features.segments import AudioSegments, extract_clip
from avel.features.vgg19 import BLOCKS, Vgg19
from avel.features.vggish import SAMPLE_RATE, Vggish, log_mel
from avel.features.video import Scaler, open_media
from avel.files import write_file

os.environ.setdefault("KERAS_BACKEND", "torch")
import cv2
import keras
import resampy
import soundfile
from torchvggish import torchvggish, vggish_input

sys.path.insert(0, str(ROOT / "tests"))
from random_weights import digest, random_stack, random_vggish, write_keras, write_vggish

PICTURES = ("BjCEufrlXm4.mp4", "bt709_full_range.mp4", "h265_video.mp4", "av1_video.mkv")
SOUNDS = ("BjCEufrlXm4.mp4", "bird_audio.wav", "car_audio.wav", "cat_3-95694-A-5.wav", "dog_audio.wav")
OTHER_RATES = (8_000, 16_000, 22_050, 48_000)  # the first of SOUNDS is also tested at these
FRAMINGS = ("per_second", "continuous")


class KeptVgg19(Vgg19):
    """Also keeps the features before they are rounded to float16 for the store."""

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        self.kept = [*getattr(self, "kept", []), super().__call__(frames)]
        return self.kept[-1]


class NoSound:
    """An audio extractor that computes nothing."""

    kind, name, tag, options = "audio", "none", "none-0", {}
    sample_rate, dim = SAMPLE_RATE, 1

    def __call__(self, waveform: np.ndarray) -> np.ndarray:
        return np.zeros((len(waveform), 1), dtype=np.float32)


def apart(found: np.ndarray, wanted: np.ndarray) -> dict[str, float]:
    """Largest difference relative to the largest value, and mean difference relative to the mean value."""
    difference = np.abs(found.astype(np.float64) - wanted)
    return {
        "largest": float(difference.max() / np.abs(wanted).max()),
        "mean": float(difference.mean() / np.abs(wanted).mean()),
    }


def shown_frames(path: Path, num_segments: int, each: int) -> list[av.VideoFrame]:
    """The last frames of the file at or before (t + i / each) seconds."""
    with av.open(str(path)) as container:
        starts = [Fraction(stream.start_time or 0) * stream.time_base for stream in container.streams]
        frames = [(frame.time - float(min(starts)), frame) for frame in container.decode(video=0)]
    times = np.array([time for time, _ in frames])
    wanted = np.arange(num_segments * each) / each
    return [frames[max(0, index)][1] for index in np.searchsorted(times, wanted + 1e-6, side="right") - 1]


def compare_pictures(path: Path, ours: KeptVgg19, network: Any) -> dict[str, Any]:
    ours.kept = []
    stored = extract_clip(path, ours, NoSound(), Recipe(missing_audio="mark")).visual
    each = ours.frames_per_segment
    frames = shown_frames(path, len(stored), each)
    pictures = [frame.to_ndarray(format="rgb24") for frame in frames]
    resized = np.stack([cv2.resize(picture, (224, 224), interpolation=cv2.INTER_LINEAR) for picture in pictures])
    levels = np.abs(resized.astype(int) - np.stack([ours.resize(picture) for picture in pictures]))
    shape = (len(stored), each, 7, 7, 512)
    mean = network.predict(keras.applications.vgg19.preprocess_input(resized.astype(np.float32)), verbose=0)
    wanted = np.asarray(mean).reshape(shape).mean(1)
    scaler = Scaler(224, 224)
    swscale = np.concatenate([ours.block5_pool(scaler(frame)[None]) for frame in frames]).reshape(shape).mean(1)
    height, width = pictures[0].shape[:2]
    return {
        "file": path.name,
        "size": [width, height],
        "segments": len(stored),
        "grey_levels": int(levels.max()),
        "features": apart(np.concatenate(ours.kept)[: len(stored)], wanted),
        "stored": apart(stored, wanted),
        "ffmpeg_scaler": apart(swscale, wanted),
    }


def decoded_sound(path: Path) -> tuple[np.ndarray, int]:
    """Mono sound of a file at its own rate, decoded to 16 bits, on the common clock of its streams."""
    if path.suffix == ".wav":
        samples, rate = soundfile.read(path, dtype="int16", always_2d=True)
        return (samples / 32768.0).mean(1), rate
    with av.open(str(path)) as container:
        starts = [float((stream.start_time or 0) * stream.time_base) for stream in container.streams]
        sound = container.streams.audio[0]
        rate, channels = sound.rate, sound.channels
        before = round((starts[sound.index] - min(starts)) * rate)
        sixteen_bit = av.AudioResampler(format="s16", layout=sound.layout, rate=rate)
        pieces = [made.to_ndarray() for frame in container.decode(sound) for made in sixteen_bit.resample(frame)]
    samples = np.concatenate([piece.reshape(-1, channels) for piece in pieces])
    return np.pad((samples / 32768.0).mean(1), (before, 0)), rate


def at_rate(source: Path, out: Path, rate: int) -> Path:
    """Write the sound of a file at another rate, as a 16-bit WAV file."""
    wave = read_waveform(source, rate)
    soundfile.write(out, np.rint(wave * 32767).astype(np.int16), rate)
    return out


def reference_examples(wave: np.ndarray, rate: int, num_segments: int, framing: str) -> torch.Tensor:
    """torchvggish's (T, 1, 96, 64) log-mel, after resampy."""
    if framing == "per_second":
        whole = np.zeros(num_segments * rate)
        whole[: len(wave)] = wave[: len(whole)]
        return torch.cat([vggish_input.waveform_to_examples(piece, rate) for piece in whole.reshape(-1, rate)])
    padded = np.pad(wave, (0, rate))  # torchvggish drops an example that the sound does not fill
    return vggish_input.waveform_to_examples(padded, rate)[:num_segments]


def compare_sound(path: Path, name: str, networks: dict[str, Vggish], network: torch.nn.Module) -> dict[str, Any]:
    wave, rate = decoded_sound(path)
    num_segments = max(1, round(len(wave) / rate))
    row: dict[str, Any] = {"file": name, "rate": rate, "segments": num_segments}
    for framing, ours in networks.items():
        segments = AudioSegments(ours, 1.0)
        with open_media(path, video=False) as media:
            for time, frame in media.decode():
                segments.push(time, frame)
        found = segments.finish(num_segments)
        examples = reference_examples(wave, rate, num_segments, framing)
        with torch.no_grad():
            row[framing] = apart(found[: len(examples)], network(examples).numpy())
    pieces = np.zeros((num_segments, SAMPLE_RATE))
    swresample = read_waveform(path, SAMPLE_RATE)[: pieces.size]
    pieces.flat[: len(swresample)] = swresample
    examples = reference_examples(wave, rate, num_segments, "per_second")
    with torch.no_grad():
        wanted = network(examples).numpy()
    spectrogram = log_mel(pieces)[:, :96]
    row["ffmpeg_resampler"] = apart(networks["per_second"].embed(spectrogram), wanted)
    row["ffmpeg_resampler"]["log_mel"] = float(np.abs(spectrogram - examples[:, 0].detach().numpy()).max())
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames-per-segment", type=int, default=2, help="frames of VGG-19; the number changes little")
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "parity.json")
    arguments = parser.parse_args()
    media = Path(os.environ.get("AVEL_TEST_DATA") or ROOT.parent / "shared") / "media"
    if not resampy.__version__.startswith("0.2."):
        sys.exit(
            f"resampy {resampy.__version__} has a different kaiser_best filter than 0.2; use requirements-parity.lock"
        )
    with tempfile.TemporaryDirectory() as folder:
        file = write_keras(Path(folder) / "vgg19.h5", random_stack(BLOCKS, 3))
        ours = KeptVgg19(
            weights_file=str(file), weights_sha=digest(file), frames_per_segment=arguments.frames_per_segment
        )
        theirs = keras.applications.VGG19(weights=str(file), include_top=False, input_shape=(224, 224, 3))
        pictures = [compare_pictures(media / name, ours, theirs) for name in PICTURES]
        state = random_vggish()
        file = write_vggish(Path(folder) / "vggish.pth", state)
        network = torchvggish._vgg(postprocess=False)
        network.load_state_dict(state)
        networks = {framing: Vggish(str(file), digest(file), framing=framing) for framing in FRAMINGS}
        files = [(media / name, name) for name in SOUNDS]
        files += [
            (at_rate(files[0][0], Path(folder) / f"{rate}.wav", rate), f"{SOUNDS[0]}, resampled")
            for rate in OTHER_RATES
        ]
        sounds = [compare_sound(path, name, networks, network) for path, name in files]
    content = {
        "title": "Features of real files beside those of the reference programs, with random weights",
        **birth(),
        "references": {
            "keras": keras.__version__,
            "opencv": cv2.__version__,
            "resampy": resampy.__version__,
            "torchvggish": "0.2",
        },
        "frames_per_segment": arguments.frames_per_segment,
        "pictures": pictures,
        "sounds": sounds,
    }
    write_file(arguments.results, json.dumps(content, indent=1) + "\n")
    from readme import table

    print(table(arguments.results))


if __name__ == "__main__":
    main()
