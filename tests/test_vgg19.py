"""VGG-19 against plain loops and layer by layer, its weights' two formats, and frames as OpenCV resizes them.

The network here has all its layers and 512 features, but few channels on the way: the full one takes far longer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from media import write_video
from random_weights import digest, random_stack, write_keras, write_torchvision
from torch.nn import functional as F

import avel.features.vgg19 as vgg19_module
from avel.errors import AvelError
from avel.features import AudioExtractor, build_extractor, describe
from avel.features.segments import extract_clip
from avel.features.vgg19 import BLOCKS, Vgg19, conv_stack, multiply_adds, resize_bilinear, stack_shapes
from avel.features.weights import PUBLISHED

NARROW = ((4, 2), (8, 2), (8, 4), (16, 4), (512, 4))


@pytest.fixture(scope="module", autouse=True)
def narrow() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(vgg19_module, "BLOCKS", NARROW)
        yield


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return random_stack(NARROW, 3)


@pytest.fixture(scope="module")
def keras_file(tmp_path_factory: pytest.TempPathFactory, state: dict[str, torch.Tensor]) -> Iterator[Path]:
    """28 MB, gone afterwards."""
    path = write_keras(tmp_path_factory.mktemp("weights") / "vgg19.h5", state)
    yield path
    path.unlink()


@pytest.fixture(scope="module")
def vgg19(keras_file: Path) -> Vgg19:
    """Two frames a segment."""
    return Vgg19(weights_file=str(keras_file), weights_sha=digest(keras_file), frames_per_segment=2)


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    """Four different ones: noise on colours."""
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 200, (4, 1, 1, 3))
    return (colours + rng.integers(0, 56, (4, 224, 224, 3))).astype(np.uint8)


def test_a_small_stack_against_plain_loops() -> None:
    """3x3 kernels, zeros around, a bias, ReLU, and the largest of 2x2."""
    blocks = ((2, 1), (3, 2))
    state = random_stack(blocks, 2)
    picture = np.random.default_rng(0).normal(size=(2, 4, 8)).astype(np.float32)
    found = conv_stack(blocks, 2, state)(torch.from_numpy(picture)[None])[0]

    def convolve(values: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
        channels, height, width = values.shape
        out = np.zeros((len(weight), height, width))
        for k in range(len(weight)):
            for y in range(height):
                for x in range(width):
                    total = float(bias[k])
                    for c in range(channels):
                        for i in range(3):
                            for j in range(3):
                                if 0 <= y + i - 1 < height and 0 <= x + j - 1 < width:
                                    total += float(weight[k, c, i, j]) * float(values[c, y + i - 1, x + j - 1])
                    out[k, y, x] = max(0.0, total)
        return out

    def pool(values: np.ndarray) -> np.ndarray:
        channels, height, width = values.shape
        return values.reshape(channels, height // 2, 2, width // 2, 2).max((2, 4))

    arrays = iter(value.numpy() for value in state.values())
    wanted = pool(convolve(picture, next(arrays), next(arrays)))
    wanted = convolve(wanted, next(arrays), next(arrays))
    wanted = pool(convolve(wanted, next(arrays), next(arrays)))
    assert found.shape == wanted.shape == (3, 1, 2) and np.abs(found.numpy() - wanted).max() < 1e-5


def test_names_and_shapes_of_the_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vgg19_module, "BLOCKS", BLOCKS)
    shapes = stack_shapes(BLOCKS, 3)
    convolutions = [int(name.split(".")[0]) for name in shapes if name.endswith("weight")]
    assert convolutions == [0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34]  # torchvision's "features"
    assert shapes["0.weight"] == (64, 3, 3, 3) and shapes["34.bias"] == (512,)
    assert sum(math.prod(shape) for shape in shapes.values()) == 20_024_384  # as Keras counts them
    assert multiply_adds() == 19_508_428_800


def reference(frames: np.ndarray, state: dict[str, torch.Tensor], pictures: torch.Tensor) -> np.ndarray:
    """The stack of ``pictures`` (N, 3, 224, 224), one layer after another, channels first."""
    arrays = iter(state.values())
    values = pictures
    for _, convolutions in NARROW:
        for _ in range(convolutions):
            values = F.relu(F.conv2d(values, next(arrays), next(arrays), padding=1))
        values = F.max_pool2d(values, 2)
    return values.permute(0, 2, 3, 1).numpy()


def close(found: np.ndarray, wanted: np.ndarray) -> bool:
    return found.shape == wanted.shape and bool(np.abs(found - wanted).max() < 1e-4 * np.abs(wanted).max())


def test_keras_s_preprocessing_and_layout(vgg19: Vgg19, frames: np.ndarray, state: dict[str, torch.Tensor]) -> None:
    bgr = frames[..., ::-1].astype(np.float32) - np.array([103.939, 116.779, 123.68], dtype=np.float32)
    wanted = reference(frames, state, torch.from_numpy(bgr).permute(0, 3, 1, 2).contiguous())
    assert close(vgg19.block5_pool(frames[:1]), wanted[:1])
    found = vgg19(frames)
    assert close(found, wanted.reshape(2, 2, 7, 7, 512).mean(1))
    assert found.shape == (2, 7, 7, 512) and found.dtype == np.float32 and found.min() >= 0 and (found == 0).any()
    swapped = vgg19(np.ascontiguousarray(frames[:2, ..., ::-1]))
    assert not close(swapped, found[:1])  # red is not blue


def test_torchvision_s_preprocessing_and_layout(
    tmp_path: Path, frames: np.ndarray, state: dict[str, torch.Tensor]
) -> None:
    path = write_torchvision(tmp_path / "vgg19.pth", state)
    found = Vgg19("torchvision", str(path), digest(path)).block5_pool(frames[:2])
    path.unlink()
    rgb = frames[:2].astype(np.float32) / 255
    normal = (rgb - np.float32([0.485, 0.456, 0.406])) / np.float32([0.229, 0.224, 0.225])
    assert close(found, reference(frames, state, torch.from_numpy(normal).permute(0, 3, 1, 2).contiguous()))


def test_batches_and_segments_do_not_mix(vgg19: Vgg19, frames: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vgg19._batches, "size", 3)
    assert close(vgg19(frames)[1:], vgg19(frames[2:]))


@pytest.mark.slow
def test_bfloat16(keras_file: Path, vgg19: Vgg19, frames: np.ndarray) -> None:
    half = Vgg19(weights_file=str(keras_file), weights_sha=digest(keras_file), precision="bfloat16")
    found, wanted = half.block5_pool(frames[:1]), vgg19.block5_pool(frames[:1])
    assert found.dtype == np.float32
    assert 1e-4 < np.abs(found - wanted).max() / wanted.max() < 2e-2


def test_the_tag_knows_what_shapes_the_numbers(
    tmp_path: Path, keras_file: Path, vgg19: Vgg19, state: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    sha = digest(keras_file)
    (tmp_path / "link.h5").symlink_to(keras_file)
    other = state | {"0.bias": state["0.bias"] + 1}
    others, torchvision = (
        write_keras(tmp_path / "other.h5", other),
        write_torchvision(tmp_path / "vgg19.pth", state, zipped=True),
    )
    different = [
        vgg19,
        Vgg19(weights_file=str(keras_file), weights_sha=sha),
        Vgg19(weights_file=str(keras_file), weights_sha=sha, precision="bfloat16"),
        Vgg19(weights_file=str(others), weights_sha=digest(others)),
        Vgg19("torchvision", str(torchvision), digest(torchvision)),
    ]
    assert len({extractor.tag for extractor in different}) == len(different)
    # Where the file lies is not among it, nor does a store or model carry it.
    moved = Vgg19(weights_file=str(tmp_path / "link.h5"), weights_sha=sha, frames_per_segment=2)
    assert moved.tag == vgg19.tag and describe(moved) == describe(vgg19)
    assert "weights_file" not in describe(moved)["options"]
    for extractor in different:  # another process makes it again by its options
        assert build_extractor("visual", "vgg19", **extractor.options).tag == extractor.tag
    # ... and another machine from what the store says, with the file in its cache.
    monkeypatch.setenv("AVEL_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / PUBLISHED["vgg19-keras"].name).symlink_to(keras_file)
    assert build_extractor("visual", "vgg19", **describe(vgg19)["options"]).tag == vgg19.tag
    for path in (others, torchvision):
        path.unlink()


def test_the_published_file_needs_no_hash(
    keras_file: Path, vgg19: Vgg19, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size, sha = keras_file.stat().st_size, digest(keras_file)
    known = replace(PUBLISHED["vgg19-keras"], size=size, algorithm="sha256", digest=sha)
    monkeypatch.setattr(vgg19_module, "PUBLISHED", {"vgg19-keras": known})
    assert Vgg19(weights_file=str(keras_file), frames_per_segment=2).tag == vgg19.tag


def test_mistakes(tmp_path: Path, state: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    for options, found in (
        ({"weights": "caffe"}, "VGG-19 weights 'caffe'"),
        ({"precision": "half"}, "precision 'half'"),
        ({"frames_per_segment": 0}, "0 frames"),
        ({"weights_file": str(tmp_path / "none.h5")}, "no such file of weights"),
        ({"width": 3}, r"no option 'width'\n  expected: .*precision \(float32\)"),
    ):
        with pytest.raises(AvelError, match=found):
            build_extractor("visual", "vgg19", **options)
    small = torch.zeros(1)
    path = tmp_path / "small.pth"
    torch.save({"features.0.weight": small}, path)
    with pytest.raises(AvelError, match=r"features.0.weight has the shape \(1,\)"):
        Vgg19("torchvision", str(path), digest(path))
    torch.save({"conv.weight": small}, path)
    with pytest.raises(AvelError, match=r"it lacks features\.0\.weight"):
        Vgg19("torchvision", str(path), digest(path))
    with pytest.raises(AvelError, match="does not hold this network's weights"):
        Vgg19("keras", str(path), digest(path))


def plain_resize(picture: np.ndarray, size: int) -> np.ndarray:
    """Bilinear between the four pixels around each point, in plain floating point."""
    height, width, _ = picture.shape
    out = np.zeros((size, size, 3))
    for row in range(size):
        for column in range(size):
            y = (row + 0.5) * height / size - 0.5
            x = (column + 0.5) * width / size - 0.5
            top, left = math.floor(y), math.floor(x)
            for i, share_y in ((top, 1 - (y - top)), (top + 1, y - top)):
                for j, share_x in ((left, 1 - (x - left)), (left + 1, x - left)):
                    pixel = picture[min(max(i, 0), height - 1), min(max(j, 0), width - 1)]
                    out[row, column] += share_y * share_x * pixel
    return out


@pytest.mark.parametrize("size", [(90, 160), (17, 23), (32, 32), (64, 64), (8, 5)])
def test_resize(size: tuple[int, int]) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    found = resize_bilinear(picture[None], 32)
    assert found.shape == (1, 32, 32, 3) and found.dtype == np.uint8
    assert np.abs(found[0] - plain_resize(picture, 32)).max() < 1
    if size == (32, 32):
        assert np.array_equal(found[0], picture)


def test_frames_of_a_clip_are_resized_here(tmp_path: Path, vgg19: Vgg19, audio: AudioExtractor) -> None:
    """Decoded at their own size and never touched by FFmpeg's scaler, which averages."""
    path = write_video(tmp_path / "a.mp4", seconds=1, size=(448, 320), noise=60)
    with av.open(str(path)) as container:
        native = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert native[0].shape == (320, 448, 3)
    shown = np.stack([resize_bilinear(native[index][None], 224)[0] for index in (0, 5)])
    found = extract_clip(path, vgg19, audio)
    assert found.visual.shape == (1, 7, 7, 512)
    assert np.array_equal(found.visual, vgg19(shown).astype(np.float16))
