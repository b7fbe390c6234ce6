"""CLIP and CLAP out of a folder: against transformers itself, the grid the right way up, tags, users' mistakes."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny_models import IMAGE, PATCH, SPACE, needs_transformers, write_clap, write_clip

from avel import cli
from avel.config import TrainConfig
from avel.data.store import open_store
from avel.errors import AvelError
from avel.features import build_extractor
from avel.features.extract import extract
from avel.features.huggingface import (
    CLAP_WEIGHTS,
    CLIP_WEIGHTS,
    ClapAudio,
    ClipVision,
    find_folder,
    import_transformers,
)
from avel.features.recipe import Recipe
from avel.features.segments import extract_clip
from avel.localization import localize
from avel.training import train


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("models") / "clip")


@pytest.fixture(scope="module")
def clap_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clap(tmp_path_factory.mktemp("models") / "clap")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of avel that nobody else has put anything into."""
    monkeypatch.setenv("AVEL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def pictures(number: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (number, IMAGE, IMAGE, 3), dtype=np.uint8)


def sounds(number: int, samples: int = 48_000, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(number, samples)) * 0.1).astype(np.float32)


def copy(folder: Path, to: Path, **changes: object) -> Path:
    """Of a model, with values of its config.json changed."""
    shutil.copytree(folder, to)
    if changes:
        config = json.loads((to / "config.json").read_text())
        (to / "config.json").write_text(json.dumps(config | changes))
    return to


# CLIP


@needs_transformers
def test_clip_declares_what_its_folder_says(clip_folder: Path) -> None:
    clip = ClipVision(str(clip_folder), frames_per_segment=2)
    assert (clip.kind, clip.name, clip.frame_size, clip.grid, clip.dim) == ("visual", "clip", IMAGE, (4, 4), 24)
    assert clip.options["weights"] == str(clip_folder) and clip.options["frames_per_segment"] == 2
    assert clip.word_scale == pytest.approx(np.exp(2.6592), rel=1e-4)
    features = clip(pictures(6))
    assert features.shape == (3, 4, 4, 24) and features.dtype == np.float32
    np.testing.assert_array_equal(features, ClipVision(**clip.options)(pictures(6)))


@needs_transformers
def test_clip_against_transformers(clip_folder: Path) -> None:
    """Pictures of the right size go through its own preprocessing unchanged but for the normalisation."""
    import torch
    import transformers

    clip = ClipVision(str(clip_folder), frames_per_segment=1)
    frames = pictures(3)
    network = transformers.CLIPModel.from_pretrained(clip_folder).eval()
    processor = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
    pixels = processor.from_pretrained(clip_folder)(list(frames), return_tensors="pt")
    tokens = transformers.AutoTokenizer.from_pretrained(clip_folder)(["a dog", "bell"], padding=True)
    with torch.inference_mode():
        wanted = network(**pixels, **tokens.convert_to_tensors("pt"))
        hidden = wanted.vision_model_output.last_hidden_state[:, 1:]
        hidden = network.vision_model.post_layernorm(hidden).reshape(3, 4, 4, 24)
    whole, cells = clip.embed_frames(frames)
    assert whole.shape == (3, SPACE) and cells.shape == (3, 4, 4, SPACE)
    np.testing.assert_allclose(np.linalg.norm(cells, axis=-1), 1, atol=1e-5)
    np.testing.assert_allclose(clip(frames), hidden, atol=1e-4)
    np.testing.assert_allclose(whole, wanted.image_embeds, atol=1e-5)
    words = clip.embed_words(["a dog", "bell"])
    np.testing.assert_allclose(words, wanted.text_embeds, atol=1e-5)
    np.testing.assert_allclose(clip.word_scale * whole @ words.T, wanted.logits_per_image, atol=1e-4)


@needs_transformers
def test_patches_in_the_last_layer_see_themselves_alone(clip_folder: Path) -> None:
    """The last layer done by hand: attention of a sequence of one token is that token's value."""
    import torch

    clip = ClipVision(str(clip_folder), frames_per_segment=1)
    frames = pictures(1)
    vision = clip._network.vision_model
    with torch.inference_mode():
        seen, entering = clip._run(clip._on_device(frames))
        assert torch.equal(vision.encoder.layers[-1](entering, None), seen.last_hidden_state)
        alone = torch.stack([vision.encoder.layers[-1](entering[:, i : i + 1], None)[0, 0] for i in range(1, 17)])
        wanted = clip._network.visual_projection(vision.post_layernorm(alone))
    wanted = torch.nn.functional.normalize(wanted, dim=-1)
    np.testing.assert_allclose(clip.embed_frames(frames)[1][0].reshape(16, SPACE), wanted, atol=1e-5)


@needs_transformers
@pytest.mark.parametrize("cell", [(0, 0), (0, 3), (2, 1), (3, 0)])
def test_a_patch_of_the_picture_is_its_cell_of_the_grid(
    tmp_path: Path, clip_folder: Path, cell: tuple[int, int]
) -> None:
    row, column = cell
    before = pictures(1)
    after = before.copy()
    after[0, row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH] ^= 255
    clip = ClipVision(str(clip_folder), frames_per_segment=1)
    change = np.abs(clip(after) - clip(before)).sum(-1)[0]  # attention takes it everywhere, but most of it stays
    assert np.unravel_index(change.argmax(), change.shape) == cell
    one_layer = ClipVision(str(write_clip(tmp_path / "one", layers=1)), frames_per_segment=1)
    change = np.abs(one_layer.embed_frames(after)[1] - one_layer.embed_frames(before)[1]).sum(-1)[0]
    assert change[cell] > 0.1
    change[cell] = 0
    assert change.max() < 1e-5  # for words the only layer lets each patch see itself alone


@needs_transformers
def test_segments_are_means_of_their_frames(clip_folder: Path) -> None:
    frames = pictures(40)  # more than go through the network at once
    each = ClipVision(str(clip_folder), frames_per_segment=1)
    twenty = ClipVision(str(clip_folder), frames_per_segment=20)
    np.testing.assert_allclose(twenty(frames), each(frames).reshape(2, 20, 4, 4, 24).mean(1), atol=1e-5)
    for found, single in zip(twenty.embed_frames(frames), each.embed_frames(frames), strict=True):
        mean = single.reshape(2, 20, *single.shape[1:]).mean(1)
        np.testing.assert_allclose(found, mean / np.linalg.norm(mean, axis=-1, keepdims=True), atol=1e-5)


@needs_transformers
def test_where_transformers_5_keeps_the_settings_of_pictures(tmp_path: Path, clip_folder: Path) -> None:
    moved = copy(clip_folder, tmp_path / "moved")
    settings = json.loads((moved / "preprocessor_config.json").read_text())
    settings |= {"crop_size": {"height": IMAGE, "width": IMAGE}, "size": {"shortest_edge": IMAGE}}
    (moved / "preprocessor_config.json").unlink()
    (moved / "processor_config.json").write_text(json.dumps({"image_processor": settings}))
    assert ClipVision(str(moved)).tag == ClipVision(str(clip_folder)).tag


# CLAP


@needs_transformers
@pytest.mark.parametrize("fused", [False, True])
def test_clap_against_transformers(tmp_path: Path, fused: bool) -> None:
    import torch
    import transformers

    folder = write_clap(tmp_path / "clap", fused=fused)
    clap = ClapAudio(str(folder))
    assert (clap.kind, clap.name, clap.sample_rate, clap.dim) == ("audio", "clap", 48_000, SPACE)
    assert clap.word_scale == pytest.approx(1 / 0.07)
    network = transformers.ClapModel.from_pretrained(folder).eval()
    extractor = transformers.ClapFeatureExtractor.from_pretrained(folder)
    waveform = sounds(10)  # more than go through the network at once
    made = extractor(list(waveform), sampling_rate=48_000, return_tensors="pt")
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(["a dog", "bell"], padding=True, return_tensors="pt")
    with torch.inference_mode():
        wanted = network(
            input_features=made["input_features"].float(), is_longer=torch.zeros(10, 1, dtype=torch.bool), **tokens
        )
    found = clap(waveform)
    assert found.shape == (10, SPACE) and found.dtype == np.float32
    np.testing.assert_allclose(found, wanted.audio_embeds, atol=1e-5)
    np.testing.assert_allclose(clap.embed_words(["a dog", "bell"]), wanted.text_embeds, atol=1e-5)
    np.testing.assert_array_equal(found, clap(waveform))
    np.testing.assert_array_equal(found, ClapAudio(**clap.options)(waveform))


@needs_transformers
def test_a_short_sound_is_repeated(clap_folder: Path) -> None:
    clap = ClapAudio(str(clap_folder))
    second = sounds(2)
    np.testing.assert_allclose(clap(second), clap(np.tile(second, (1, 2))), atol=1e-6)
    third = sounds(1, 36_000)  # 0.75 s fits twice into two seconds, and half a second of silence follows
    np.testing.assert_allclose(clap(third), clap(np.pad(np.tile(third, (1, 2)), ((0, 0), (0, 24_000)))), atol=1e-6)
    assert np.isfinite(clap(np.zeros((1, 48_000), np.float32))).all()


@needs_transformers
def test_a_segment_longer_than_clap_hears_is_refused(clap_folder: Path) -> None:
    with pytest.raises(AvelError, match=r"segments of 2\.5 s for CLAP, which takes 2 s"):
        ClapAudio(str(clap_folder))(sounds(1, 120_000))


# tags and weights


@needs_transformers
def test_tags(tmp_path: Path, clip_folder: Path, clap_folder: Path) -> None:
    clip, clap = ClipVision(str(clip_folder)), ClapAudio(str(clap_folder))
    assert clip.tag.startswith("clip-") and clap.tag.startswith("clap-")
    moved = copy(clip_folder, tmp_path / "moved")
    assert ClipVision(str(moved)).tag == clip.tag  # where it lies does not matter
    others = [
        ClipVision(str(write_clip(tmp_path / "seed", seed=1))).tag,
        ClipVision(str(clip_folder), frames_per_segment=5).tag,
        ClipVision(str(copy(clip_folder, tmp_path / "config", note="another config"))).tag,
    ]
    assert len({clip.tag, *others}) == 4
    assert ClapAudio(str(write_clap(tmp_path / "other", seed=1))).tag != clap.tag


@needs_transformers
def test_other_weights_than_recorded_are_refused(tmp_path: Path, clip_folder: Path) -> None:
    options = ClipVision(str(clip_folder)).options
    assert len(options["weights_sha"]) == 64
    other = write_clip(tmp_path / "other", seed=1)
    with pytest.raises(AvelError, match=r"has the sha256"):
        ClipVision(**{**options, "weights": str(other)})


@needs_transformers
def test_options_make_it_again_from_another_working_folder(
    tmp_path: Path, clip_folder: Path, clap_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(clip_folder.parent)
    clip = build_extractor("visual", "clip", weights="clip", frames_per_segment=2)
    clap = build_extractor("audio", "clap", weights=os.path.relpath(clap_folder))
    monkeypatch.chdir(tmp_path)
    for made in (clip, clap):
        assert build_extractor(made.kind, made.name, **made.options).tag == made.tag


@needs_transformers
def test_loading_is_silent(clip_folder: Path, clap_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import transformers

    level = transformers.logging.get_verbosity()
    ClipVision(str(clip_folder)).embed_words(["dog"])
    ClapAudio(str(clap_folder))(sounds(1))
    assert capfd.readouterr() == ("", "")
    assert transformers.logging.get_verbosity() == level and transformers.logging.is_progress_bar_enabled()


@needs_transformers
def test_a_clip_of_both(tiny_video: Path, clip_folder: Path, clap_folder: Path) -> None:
    features = extract_clip(tiny_video, ClipVision(str(clip_folder)), ClapAudio(str(clap_folder)))
    assert features.visual.shape == (3, 4, 4, 24) and features.audio.shape == (3, SPACE)


@needs_transformers
def test_extract_train_and_localize(
    tmp_path: Path,
    tiny_clips: Callable[[Path, int], Path],
    tiny_video: Path,
    clip_folder: Path,
    clap_folder: Path,
    own_cache: Path,
) -> None:
    table = tiny_clips(tmp_path / "clips", 3)
    folders = [copy(clip_folder, tmp_path / "my-clip"), copy(clap_folder, tmp_path / "my-clap")]
    command = ["extract", str(table), "--out", str(tmp_path / "store"), "--visual", "clip", "--audio", "clap"]
    weights = ["--visual-weights", str(folders[0]), "--audio-weights", str(folders[1])]
    assert cli.main([*command, *weights, "--workers", "1"]) == 0
    store = open_store(tmp_path / "store")
    assert (store.grid, store.visual_dim, store.audio_dim) == ((4, 4), 24, SPACE)
    wanted = extract_clip(tmp_path / "clips" / "clip1.mp4", ClipVision(str(clip_folder)), ClapAudio(str(clap_folder)))
    np.testing.assert_array_equal(store.visual(1), wanted.visual)
    np.testing.assert_allclose(store.audio(1), wanted.audio, atol=1e-6)

    train(TrainConfig(store=store.path, out=tmp_path / "run", window=2, epochs=1, select_on="test"))
    timeline = localize(tiny_video, tmp_path / "run")
    assert timeline.tags["visual"] == ClipVision(str(clip_folder)).tag
    # on another machine: the folders are not where they were, but in the cache under their names
    own_cache.mkdir()
    for folder in folders:
        shutil.move(folder, own_cache / folder.name)
    np.testing.assert_array_equal(localize(tiny_video, tmp_path / "run").probabilities, timeline.probabilities)
    options = {"visual_options": {"weights": str(clip_folder)}, "audio_options": {"weights": str(clap_folder)}}
    report = extract(
        table, store.path, Recipe(visual="clip", audio="clap", **options)
    )  # the same weights, named otherwise
    assert (report.done, report.skipped) == (0, 3)
    assert open_store(store.path).extractors["visual"]["options"]["weights"] == str(clip_folder)
    # ... and nowhere: say where they are looked for
    shutil.rmtree(own_cache)
    with pytest.raises(AvelError, match="no such folder") as caught:
        localize(tiny_video, tmp_path / "run")
    assert caught.value.do == f"put it at {own_cache / 'my-clip'}"


# what users get wrong


def test_transformers_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    for make in (ClipVision, ClapAudio, import_transformers):
        with pytest.raises(AvelError) as caught:
            make()
        assert 'pip install "avel[hf]"' in caught.value.do


@pytest.mark.parametrize("name", ["nowhere", "/no/such/folder", "./openai/clip", "a/b/c"])
def test_no_such_folder(name: str) -> None:
    with pytest.raises(AvelError) as caught:
        find_folder(name)
    assert name in caught.value.found and "model.safetensors" in caught.value.expected


def test_a_folder_in_the_cache_is_found(own_cache: Path) -> None:
    kept = own_cache / "clip-vit-base-patch32"
    kept.mkdir(parents=True)
    assert find_folder("openai/clip-vit-base-patch32@refs/pr/15") == kept
    assert find_folder("/another/machine/clip-vit-base-patch32", moved=True) == kept
    with pytest.raises(AvelError, match="no such folder: /mistyped/clip-vit-base-patch32"):
        find_folder("/mistyped/clip-vit-base-patch32")  # what a user names is what is taken, or nothing


def test_a_folder_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "clip").mkdir()
    assert find_folder("~/clip") == tmp_path / "clip"
    with pytest.raises(AvelError, match="no such folder: ~nobody-of-that-name/clip"):
        find_folder("~nobody-of-that-name/clip")


@needs_transformers
def test_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    asked = []

    def snapshot_download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision))
        assert not any(pattern in ("*", "*.bin") for pattern in allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert find_folder("openai/clip@refs/pr/15") == find_folder("openai/clip") == tmp_path
    assert asked == [("openai/clip", "refs/pr/15"), ("openai/clip", None)]


@needs_transformers
@pytest.mark.parametrize("error", [OSError("no route"), ValueError("no route"), Exception("no route\nto the host")])
def test_whatever_the_hub_raises(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Its client has errors that share nothing but Exception: of a proxy, of a revision, of Rust."""
    import huggingface_hub

    def snapshot_download(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(AvelError) as caught:
        find_folder("openai/clip")
    assert caught.value.found.endswith("the download failed: no route")


@needs_transformers
@pytest.mark.parametrize("weights", [CLIP_WEIGHTS, CLAP_WEIGHTS])
def test_the_docs_and_the_error_give_the_same_command(monkeypatch: pytest.MonkeyPatch, weights: str) -> None:
    monkeypatch.delenv("AVEL_CACHE")
    monkeypatch.setenv("HOME", "/home/me")
    text = (Path(__file__).parents[1] / "docs" / "zero-shot.md").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith(f"hf download {weights.partition('@')[0]} ")]
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: 1 / 0)
    with pytest.raises(AvelError) as caught:
        find_folder(weights)
    told = caught.value.do.partition("run: ")[2].splitlines()[0]
    assert shlex.split(told) == shlex.split(line.replace("~", "/home/me"))


def only_a_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def cut_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:5000])


def lack_a_weight(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def other_shape(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["hidden_size"] = 32
    (folder / "config.json").write_text(json.dumps(config))


def bad_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def weights_that_cannot_be_read(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("/proc/self/mem")  # a file, but reading it is an error, even for root


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def other_type(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "bert"}')


def no_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()


def other_tokenizer(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] |= {f"word{index}</w>": 78 + index for index in range(9)}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def no_settings(folder: Path) -> None:
    (folder / "preprocessor_config.json").unlink()


def no_mean(folder: Path) -> None:
    (folder / "preprocessor_config.json").write_text(json.dumps({"crop_size": IMAGE, "image_std": [1, 1, 1]}))


def other_size(folder: Path) -> None:
    settings = json.loads((folder / "preprocessor_config.json").read_text()) | {"crop_size": 64}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))


@needs_transformers
@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (only_a_pickle, "a pickle, which avel never opens"),
        (no_weights, "has no model.safetensors"),
        (cut_weights, "cannot be used"),
        (weights_that_cannot_be_read, "cannot be used: model.safetensors: Input/output error"),
        (lack_a_weight, "lacks visual_projection.weight"),
        (other_shape, "cannot be used"),
        (bad_config, "config.json is not"),
        (no_config, "config.json: no such file"),
        (other_type, "type 'bert'"),
        (no_tokenizer, "it has no tokenizer.json"),
        (other_tokenizer, "its tokenizer has more words"),
        (no_settings, "processor_config.json: no such file"),
        (no_mean, "image_mean"),
        (other_size, "does not describe the pictures of 32 pixels"),
    ],
)
def test_a_folder_that_does_not_fit(tmp_path: Path, clip_folder: Path, damage, told: str) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(clip_folder, folder)
    damage(folder)
    with pytest.raises(AvelError) as caught:
        ClipVision(str(folder))
    assert told in caught.value.found and str(folder) in caught.value.found


@needs_transformers
def test_clap_without_the_settings_of_its_spectrogram(tmp_path: Path, clap_folder: Path) -> None:
    folder = copy(clap_folder, tmp_path / "damaged")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(AvelError, match="cannot be used"):
        ClapAudio(str(folder))


@needs_transformers
def test_a_text_that_is_too_long(clip_folder: Path, clap_folder: Path) -> None:
    for encoder in (ClipVision(str(clip_folder)), ClapAudio(str(clap_folder))):
        with pytest.raises(AvelError, match="tokens in the text 'dog"):
            encoder.embed_words(["bell", "dog" * 40])


@needs_transformers
def test_frames_per_segment_out_of_range(clip_folder: Path) -> None:
    with pytest.raises(AvelError, match="0 frames a segment"):
        ClipVision(str(clip_folder), frames_per_segment=0)


@needs_transformers
def test_a_pickle_converted_as_the_docs_say(tmp_path: Path, clip_folder: Path) -> None:
    import torch
    from safetensors.torch import load_file

    text = (Path(__file__).parents[1] / "docs" / "zero-shot.md").read_text()
    code = text.split("```python\n# convert")[1].split("\n", 1)[1].split("```")[0]
    folder = copy(clip_folder, tmp_path / "pickled")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True)
    frames = pictures(4)
    np.testing.assert_array_equal(ClipVision(str(folder))(frames), ClipVision(str(clip_folder))(frames))
