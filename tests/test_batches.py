"""Networks on a device: batches as large as there is room, nothing left behind on the processor, the same features."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import EndsOfSound, GreyMeans
from media import write_video
from tiny_models import needs_transformers, write_clap, write_clip
from tiny_weights import write_tiny
from torch.utils._python_dispatch import TorchDispatchMode

import avel
from avel import cli, devices
from avel.data.store import open_store
from avel.errors import AvelError
from avel.features import batches as batches_module
from avel.features import estimate as estimate_module
from avel.features import extract as extract_module
from avel.features import recipe as recipe_module
from avel.features.batches import Batches
from avel.features.extract import extract
from avel.features.recipe import BuiltRecipe, Recipe
from avel.features.vgg19 import Vgg19
from avel.features.vggish import Vggish

CUDA = torch.device("cuda")
Clips = Callable[[Path, int], Path]


def on_cuda(monkeypatch: pytest.MonkeyPatch, free: int = 2**40, **settings: int) -> Batches:
    """Batches that take themselves to be on a GPU with so much memory."""
    monkeypatch.setattr(batches_module, "free_bytes", lambda device: free)
    found = Batches(**{"on_cpu": 2, "elsewhere": 64, "item_bytes": 1000, **settings})
    found.to(CUDA)
    return found


def test_a_batch_is_what_half_of_the_free_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    assert on_cuda(monkeypatch).size == 64
    assert on_cuda(monkeypatch, free=20_000).size == 10
    assert on_cuda(monkeypatch, free=10).size == 1
    found = on_cuda(monkeypatch)
    found.to(torch.device("cpu"))
    assert found.size == 2


def test_out_of_memory_halves_the_batch_and_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    found = on_cuda(monkeypatch, elsewhere=8)
    asked: list[int] = []

    def network(items: np.ndarray) -> np.ndarray:
        asked.append(len(items))
        if len(items) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return items * 10

    items = np.arange(11)
    assert found(network, items).tolist() == (items * 10).tolist()
    assert asked == [8, 4, 2, 2, 2, 2, 2, 1] and found.size == 2
    assert found(network, items).tolist() == (items * 10).tolist() and asked[8] == 2  # remembered


def test_a_device_without_room_for_one_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(items: np.ndarray) -> np.ndarray:
        raise RuntimeError("MPS backend out of memory")

    with pytest.raises(AvelError, match="memory of cuda is full") as caught:
        on_cuda(monkeypatch)(full, np.arange(5))
    assert "--device cpu" in caught.value.do

    def wrong(items: np.ndarray) -> np.ndarray:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        on_cuda(monkeypatch)(wrong, np.arange(5))
    with pytest.raises(RuntimeError, match="out of memory"):  # a processor's memory does not grow by halving
        Batches(on_cpu=2, elsewhere=2, item_bytes=1)(full, np.arange(5))


def test_float32_stays_float32_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """By itself PyTorch would round to 10 bits in convolutions there, under the tag of whole floats."""
    seen: list[bool] = []

    def network(items: np.ndarray) -> np.ndarray:
        seen.append(torch.backends.cudnn.allow_tf32)
        return items

    before = torch.backends.cudnn.allow_tf32
    on_cuda(monkeypatch)(network, np.arange(3))
    assert seen == [False] and torch.backends.cudnn.allow_tf32 == before


class Devices(TorchDispatchMode):
    """Where the results of all operations lie."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, tuple | list) else [made]:
            if isinstance(one, torch.Tensor):
                self.seen.add(one.device.type)
        return made


def all_on_meta(network: Callable[[torch.Tensor], torch.Tensor], *shape: int, dtype: torch.dtype) -> tuple[int, ...]:
    """Run a network on the device ``meta``, which knows shapes alone: what it makes anywhere else is found."""
    given = torch.empty(shape, dtype=dtype, device="meta")
    with torch.inference_mode(), Devices() as watched:
        made = network(given)
    assert watched.seen == {"meta"}
    return tuple(made.shape)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_vgg19_is_wholly_on_its_device(precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keras, _ = write_tiny(tmp_path, monkeypatch)
    network = Vgg19(weights_file=str(keras), precision=precision)
    network.to(torch.device("meta"))
    assert all_on_meta(network.pool, 3, 224, 224, 3, dtype=torch.uint8) == (3, 7, 7, 512)


@pytest.mark.parametrize("activation", ["relu", "none"])
def test_vggish_is_wholly_on_its_device(activation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, torchvggish = write_tiny(tmp_path, monkeypatch)
    network = Vggish(str(torchvggish), last_activation=activation)
    network.to(torch.device("meta"))
    assert all_on_meta(network.listen, 4, 96, 64, dtype=torch.float32) == (4, 128)


@needs_transformers
def test_clip_and_clap_are_wholly_on_their_device(tmp_path: Path) -> None:
    from avel.features.huggingface import ClapAudio, ClipVision

    eyes, ears = ClipVision(str(write_clip(tmp_path / "clip"))), ClapAudio(str(write_clap(tmp_path / "clap")))
    for network in (eyes, ears):
        network.to(torch.device("meta"))
    side = eyes.frame_size
    assert all_on_meta(eyes.tokens, 2, side, side, 3, dtype=torch.uint8)[:2] == (2, 16)
    assert all_on_meta(eyes.embed, 2, side, side, 3, dtype=torch.uint8)[:2] == (2, 17)
    heard = ears._spectrograms(np.zeros((2, ears.sample_rate), np.float32))
    assert all_on_meta(ears.listen, *heard.shape, dtype=torch.float32) == (2, ears.dim)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, torch.device]]:
    """A machine with a GPU that computes on its processor; returns which networks were moved where."""
    moved: list[tuple[str, torch.device]] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for network in (Vgg19, Vggish):
        monkeypatch.setattr(network, "to", lambda self, device: moved.append((self.name, device)))
    return moved


def test_extract_runs_its_networks_on_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpu: list[tuple[str, torch.device]], tiny_clips: Clips
) -> None:
    keras, torchvggish = write_tiny(tmp_path, monkeypatch)
    table = tiny_clips(tmp_path / "clips", 1)
    recipe = Recipe(
        visual="vgg19",
        audio="vggish",
        visual_options={"weights_file": str(keras), "frames_per_segment": 2},
        audio_options={"weights_file": str(torchvggish)},
    )
    for device, wanted in (("auto", "cuda"), ("cuda:0", "cuda:0"), ("cpu", "cpu")):
        gpu.clear()
        report = extract(table, tmp_path / wanted.replace(":", ""), replace(recipe, device=device), workers=0)
        assert report.device == wanted
        assert {place for _, place in gpu} == {torch.device(wanted)} and {name for name, _ in gpu} == {
            "vgg19",
            "vggish",
        }
    tags = [open_store(tmp_path / name).settings.shaping for name in ("cuda", "cuda0", "cpu")]
    assert tags[0] == tags[1] == tags[2]  # where features were made is not among what they are
    report = extract(table, tmp_path / "classical", workers=0)
    assert report.device == "cpu"  # no network, nothing to move


def test_workers_have_their_networks_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a worker is sent makes the same recipe, device included, and moves the networks there."""
    moved: list[str] = []
    monkeypatch.setattr(recipe_module, "build_visual", lambda name, **options: GreyMeans())
    monkeypatch.setattr(recipe_module, "build_audio", lambda name, **options: EndsOfSound())
    monkeypatch.setattr(recipe_module, "device_for", lambda device, *extractors: device)
    monkeypatch.setattr(recipe_module, "run_on", lambda device, *extractors: moved.append(device))
    sent = pickle.loads(pickle.dumps(Recipe(visual="grey", audio="ends", device="cuda:1").build().recipe))
    assert sent.build().recipe == sent and sent.device == "cuda:1" and not moved
    extract_module._prepare(Path("out"), sent)
    estimate_module._prepare(sent)
    assert moved == ["cuda:1", "cuda:1"]


def test_as_many_workers_as_a_gpu_has_room_for(monkeypatch: pytest.MonkeyPatch, gpu: list[object]) -> None:
    monkeypatch.setattr(recipe_module, "worker_count", lambda workers: 16 if workers is None else workers)
    monkeypatch.setattr(devices, "free_bytes", lambda place: 24 * 2**30)
    on_gpu, on_cpu = (BuiltRecipe(Recipe(device=place), GreyMeans(), EndsOfSound()) for place in ("cuda", "cpu"))
    assert on_gpu.processes(None) == 4
    assert on_gpu.processes(9) == 9  # asked for
    assert on_cpu.processes(None) == 16
    monkeypatch.setattr(devices, "free_bytes", lambda place: 2**30)
    assert on_gpu.processes(None) == 1
    assert on_gpu.limits.memory > on_cpu.limits.memory == 2 * 2**30


@pytest.mark.parametrize("device", ["banana", "cuda", "cpu:3"])
def test_a_wrong_device_is_refused(
    device: str, tiny_clips: Clips, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    table = tiny_clips(tmp_path / "clips", 1)
    assert cli.main(["extract", str(table), "--out", str(tmp_path / "store"), "--device", device]) == 2
    assert f"no device {device!r} on this machine" in capsys.readouterr().err and not (tmp_path / "store").exists()
    with pytest.raises(AvelError, match="no device"):
        avel.extract(table, tmp_path / "store", Recipe(device=device))
    for verb in (["evaluate", "run"], ["localize", "clip.mp4", "--model", "run"]):
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / "run.json").write_text("{}")
        words = [word.replace("run", str(tmp_path / "run")) if word == "run" else word for word in verb]
        assert cli.main([*words, "--device", device]) == 2
        assert f"no device {device!r}" in capsys.readouterr().err


def test_ray_takes_no_device(tiny_clips: Clips, tmp_path: Path) -> None:
    with pytest.raises(AvelError, match="'cuda' with engine ray"):
        extract(tiny_clips(tmp_path / "clips", 1), tmp_path / "store", Recipe(device="cuda"), engine="ray")


def test_words_run_on_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_video: Path) -> None:
    moved: list[str] = []
    from avel import zero_shot

    def stop(device: str, *encoders: object) -> None:
        moved.append(device)
        raise AvelError("enough", "", "")

    monkeypatch.setattr(zero_shot, "run_on", stop)
    monkeypatch.setattr(zero_shot, "_encoders", lambda *weights: (GreyMeans(), EndsOfSound()))
    with pytest.raises(AvelError, match="enough"):
        zero_shot.localize_words(write_video(tmp_path / "a.mp4", seconds=1), "dog", device="cuda:1")
    assert moved == ["cuda:1"]
