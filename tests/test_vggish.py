"""VGGish: its log-mel and its resampler against plain Python, its network layer by layer, and how sound is cut.

The network here has all its layers, but few channels: the full one takes far longer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from media import write_video
from random_weights import digest, random_vggish, write_vggish
from torch.nn import functional as F

import avel.features.vggish as vggish_module
from avel.errors import AvelError
from avel.features import build_extractor, describe
from avel.features.audio_samples import AudioTrack, read_waveform
from avel.features.recipe import Recipe
from avel.features.segments import AudioSegments, extract_clip
from avel.features.vggish import BLOCKS, WIDTHS, Vggish, log_mel, resample
from avel.features.video import open_media


@pytest.fixture(scope="module", autouse=True)
def narrow() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(vggish_module, "BLOCKS", ((8, 1), (16, 1), (32, 2), (64, 2)))
        patched.setattr(vggish_module, "WIDTHS", (64 * 6 * 4, 256, 256, 128))
        yield


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return random_vggish()


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory: pytest.TempPathFactory, state: dict[str, torch.Tensor]) -> Path:
    return write_vggish(tmp_path_factory.mktemp("weights") / "vggish.pth", state)


@pytest.fixture(scope="module")
def vggish(weights_file: Path) -> Vggish:
    return Vggish(str(weights_file), digest(weights_file))


class NoPicture:
    """A visual extractor that costs nothing."""

    kind, name, tag, options = "visual", "none", "none-0", {}
    frame_size, frames_per_segment, grid, dim = 8, 1, (1, 1), 1

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        return np.zeros((len(frames), 1, 1, 1), np.float32)


def noise(*shape: int) -> np.ndarray:
    return (np.random.default_rng(0).normal(size=shape) * 0.1).astype(np.float32)


@pytest.mark.parametrize(("samples", "frames"), [(16_000, 98), (15_600, 96), (160_000, 998), (400, 1)])
def test_number_of_frames(samples: int, frames: int) -> None:
    assert log_mel(noise(2, samples)).shape == (2, frames, 64)


def test_silence() -> None:
    assert np.allclose(log_mel(np.zeros((1, 16_000))), math.log(0.01), atol=1e-12)


def test_log_mel_by_hand() -> None:
    """Every step in plain sums; loud and quiet at once, as single precision would fail it."""
    wave = noise(1, 720)[0] * 0.001 + np.sin(2 * np.pi * 3000 * np.arange(720) / 16_000).astype(np.float32)
    found = log_mel(wave[None])[0]
    assert found.shape == (3, 64)

    def mel(hertz: float) -> float:
        return 1127 * math.log(1 + hertz / 700)

    for frame in range(3):
        piece = [float(wave[160 * frame + n]) * (0.5 - 0.5 * math.cos(2 * math.pi * n / 400)) for n in range(400)]
        size = []
        for k in range(257):  # 512 points, the last 112 of them zeros
            real = math.fsum(x * math.cos(2 * math.pi * k * n / 512) for n, x in enumerate(piece))
            imaginary = math.fsum(x * math.sin(2 * math.pi * k * n / 512) for n, x in enumerate(piece))
            size.append(math.hypot(real, imaginary))
        edges = [mel(125) + (mel(7500) - mel(125)) * band / 65 for band in range(66)]
        for band in range(64):
            left, centre, right = edges[band : band + 3]
            total = 0.0
            for k in range(1, 257):
                at = mel(k * 31.25)
                total += max(0.0, min((at - left) / (centre - left), (right - at) / (right - centre))) * size[k]
            assert found[frame, band] == pytest.approx(math.log(total + 0.01), abs=1e-5)


def plain_resample(wave: list[float], rate: int, outputs: list[int]) -> list[float]:
    """resampy 0.2 sample by sample: `outputs` of the sound at 16 kHz."""
    beta, rolloff = 14.769656459379492, 0.9475937167399596

    def bessel(x: float) -> float:
        return math.fsum((x / 2) ** (2 * k) / math.factorial(k) ** 2 for k in range(60))

    def filter_at(index: int) -> float:
        if index >= 64 * 512:
            return 0.0 if index > 64 * 512 else rolloff * sinc(rolloff * 64) / bessel(beta)
        at = index / 512
        return rolloff * sinc(rolloff * at) * bessel(beta * math.sqrt(1 - (at / 64) ** 2)) / bessel(beta)

    def sinc(x: float) -> float:
        return math.sin(math.pi * x) / (math.pi * x) if x else 1.0

    scale = min(1.0, 16_000 / rate)
    step = int(scale * 512)
    times, time = [], 0.0
    for _ in range(max(outputs) + 1):
        times.append(time)
        time += 1 / (16_000 / rate)
    results = []
    for t in outputs:
        before = int(times[t])
        share = scale * (times[t] - before)
        total = 0.0
        for first, samples in ((share, wave[before::-1]), (scale - share, wave[before + 1 :])):
            offset = int(first * 512)
            between = first * 512 - offset
            for k, sample in enumerate(samples[: (64 * 512 + 1 - offset) // step]):
                index = offset + k * step
                total += sample * scale * (filter_at(index) * (1 - between) + filter_at(index + 1) * between)
        results.append(total)
    return results


@pytest.mark.parametrize("rate", [8_000, 11_025, 44_100, 48_000])
def test_resampler_by_hand(rate: int) -> None:
    wave = noise(2, rate // 25)
    found = resample(wave, rate)
    assert found.shape == (2, 640) and found.dtype == np.float64
    outputs = [0, 1, 2, 159, 160, 161, 320, 481, 638, 639]  # both ends, and points that fall on samples
    for row in range(2):
        wanted = plain_resample(wave[row].tolist(), rate, outputs)
        assert found[row, outputs] == pytest.approx(wanted, abs=1e-8)


def test_resampled_sound_is_the_same_sound() -> None:
    for rate in (8_000, 44_100, 48_000, 12_345):
        tone = np.sin(2 * np.pi * 1000 * np.arange(rate) / rate)
        found = resample(tone[None], rate)[0]
        wanted = np.sin(2 * np.pi * 1000 * np.arange(len(found)) / 16_000)
        assert len(found) == 16_000 and np.abs(found - wanted)[500:-500].max() < 0.01
    same = noise(1, 100)
    assert np.array_equal(resample(same, 16_000), same)


def test_names_and_shapes_of_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vggish_module, "BLOCKS", BLOCKS)
    monkeypatch.setattr(vggish_module, "WIDTHS", WIDTHS)
    shapes = {name: tuple(value.shape) for name, value in random_vggish().items()}
    convolutions = [name for name in shapes if name.startswith("features.") and name.endswith("weight")]
    assert convolutions == [f"features.{index}.weight" for index in (0, 3, 6, 8, 11, 13)]  # torchvggish's
    assert shapes["features.0.weight"] == (64, 1, 3, 3) and shapes["embeddings.0.weight"] == (4096, 512 * 6 * 4)
    assert sum(math.prod(shape) for shape in shapes.values()) == 72_141_184


def test_network_layer_by_layer(vggish: Vggish, state: dict[str, torch.Tensor]) -> None:
    examples = log_mel(noise(3, 15_600)).astype(np.float32)
    values = torch.from_numpy(examples)[:, None]
    weights = iter(state.values())
    for convolutions in (1, 1, 2, 2):
        for _ in range(convolutions):
            values = F.relu(F.conv2d(values, next(weights), next(weights), padding=1))
        values = F.max_pool2d(values, 2)
    assert values.shape == (3, 64, 6, 4)
    flat = torch.stack([values[:, :, t, f] for t in range(6) for f in range(4)], 1).reshape(3, -1)  # T, F, C
    for _ in range(2):
        flat = F.relu(F.linear(flat, next(weights), next(weights)))
    wanted = F.linear(flat, next(weights), next(weights)).numpy()
    found = vggish.embed(examples)
    assert found.shape == (3, 128) and found.dtype == np.float32
    assert np.abs(found - wanted.clip(0)).max() < 1e-4 * np.abs(wanted).max()
    assert 0.2 < (found == 0).mean() < 0.8


def test_last_activation(weights_file: Path, vggish: Vggish) -> None:
    plain = Vggish(str(weights_file), digest(weights_file), last_activation="none")
    wave = noise(2, 16_000)
    assert plain(wave).min() < 0 and np.allclose(plain(wave).clip(0), vggish(wave))


def test_only_the_first_96_frames_count(vggish: Vggish) -> None:
    wave = noise(2, 16_000)
    assert np.array_equal(vggish(wave), vggish(wave[:, :15_600]))
    short = np.pad(wave[:, :9_000], ((0, 0), (0, 7_000)))
    assert np.array_equal(vggish(wave[:, :9_000]), vggish(short))  # silence of the waveform, not of its logarithm
    with pytest.raises(AvelError, match=r"segments of 2 s"):
        vggish(noise(1, 32_000))


def test_the_tag_knows_what_shapes_the_numbers(
    weights_file: Path, tmp_path: Path, vggish: Vggish, state: dict[str, torch.Tensor]
) -> None:
    sha = digest(weights_file)
    zipped = write_vggish(tmp_path / "zipped.pth", state, zipped=True)
    different = [
        vggish,
        Vggish(str(weights_file), sha, last_activation="none"),
        Vggish(str(weights_file), sha, framing="continuous"),
        Vggish(str(zipped), digest(zipped)),
    ]
    assert len({extractor.tag for extractor in different}) == len(different)
    assert np.array_equal(different[-1](noise(1, 16_000)), vggish(noise(1, 16_000)))
    for extractor in different:
        assert build_extractor("audio", "vggish", **extractor.options).tag == extractor.tag
        assert set(describe(extractor)["options"]) == {"weights_sha", "last_activation", "framing"}


def test_mistakes(tmp_path: Path) -> None:
    for options, found in (
        ({"last_activation": "tanh"}, "last activation 'tanh'"),
        ({"framing": "ave"}, "framing 'ave' of VGGish"),
        ({"framing": 1}, "framing 1 of the audio extractor 'vggish'"),
        ({"hop": 0.96}, r"no option 'hop'\n  expected: .*last_activation \(relu\), framing \(per_second\)"),
        ({"weights_file": str(tmp_path / "none.pth")}, "no such file of weights"),
    ):
        with pytest.raises(AvelError, match=found):
            build_extractor("audio", "vggish", **options)
    path = tmp_path / "other.pth"
    torch.save({"features.0.weight": torch.zeros(8, 1, 3, 3)}, path)
    with pytest.raises(AvelError, match=r"it lacks features\.0\.bias"):
        Vggish(str(path), digest(path))


@pytest.mark.parametrize("rate", [16_000, 44_100, 48_000])
@pytest.mark.parametrize("seconds", [4.0, 4.6])
def test_each_second_is_resampled_by_itself(tmp_path: Path, vggish: Vggish, rate: int, seconds: float) -> None:
    path = write_video(tmp_path / "a.mov", seconds=seconds, sample_rate=rate, audio_codec="pcm_s16le")
    wave = read_waveform(path, rate)  # at its own rate nothing is resampled
    assert len(wave) == round(seconds * rate)
    found = extract_clip(path, NoPicture(), vggish).audio
    number = round(seconds)
    wanted = np.zeros((number, rate))
    wanted.flat[: len(wave)] = wave[: number * rate]
    assert found.shape == (number, 128)
    assert np.abs(found - vggish(resample(wanted, rate))).max() < 1e-4


@pytest.mark.parametrize("rate", [16_000, 48_000, 44_100, 22_050])
def test_continuous_framing_is_that_of_the_whole(tmp_path: Path, weights_file: Path, rate: int) -> None:
    """Example t is frames 96 t to 96 t + 95 of the whole sound's spectrogram, though it comes in pieces."""
    path = write_video(tmp_path / "a.mov", seconds=4, sample_rate=rate, audio_codec="pcm_s16le")
    continuous = Vggish(str(weights_file), digest(weights_file), framing="continuous")
    frames = log_mel(resample(read_waveform(path, rate)[None], rate))[0]
    assert len(frames) == 398
    wanted = continuous.embed(frames[:384].reshape(4, 96, 64))
    found = extract_clip(path, NoPicture(), continuous).audio
    assert found.shape == wanted.shape == (4, 128)
    assert np.abs(found - wanted).max() < 1e-4 * wanted.max()
    short = extract_clip(path, NoPicture(), continuous, Recipe(segment_seconds=0.96)).audio
    assert np.abs(short[:4] - found).max() < 1e-4


def test_continuous_framing_must_not_drift(weights_file: Path) -> None:
    continuous = Vggish(str(weights_file), digest(weights_file), framing="continuous")
    segments = AudioSegments(continuous, 1.0)
    with pytest.raises(AvelError, match=r"would be 0\.76 s off its pictures") as caught:
        segments.finish(20)
    assert "--segment-seconds 0.96" in caught.value.do


def test_sound_at_its_own_rate_in_16_bits(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", sample_rate=44_100)  # AAC is decoded to floats
    track = AudioTrack(None)
    with open_media(path, video=False) as media:
        wave = np.concatenate([*(track.push(time, frame) for time, frame in media.decode()), track.finish()])
    assert track.sample_rate == 44_100
    assert np.array_equal(wave * 32768, np.rint(wave * 32768))
    assert np.abs(wave - read_waveform(path, 44_100)).max() <= 0.5 / 32768


def test_sixteen_bits() -> None:
    import av

    for samples, form, wanted in (
        (np.array([[0.5, -1.0, 1.0, 2e-5, 1e-5]], np.float32), "flt", [16384, -32768, 32767, 1, 0]),
        (np.array([[65535, 65536, -1]], np.int32), "s32", [0, 1, -1]),
        (np.array([[0, 128, 255]], np.uint8), "u8", [-32768, 0, 32512]),
        (np.array([[3, -4]], np.int16), "s16", [3, -4]),
    ):
        frame = av.AudioFrame.from_ndarray(samples, format=form, layout="mono")
        frame.sample_rate = 8_000
        track = AudioTrack(None)
        found = np.concatenate([track.push(0.0, frame), track.finish()])
        assert (found * 32768).tolist() == wanted
