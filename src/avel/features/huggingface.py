"""CLIP for pictures and CLAP for sound, as features and for comparison with words, through Hugging Face transformers.

- CLIP: Radford et al., "Learning transferable visual models from natural language supervision", ICML 2021.
- CLAP: Wu et al., "Large-scale contrastive language-audio pretraining with feature fusion and keyword-to-caption
  augmentation", ICASSP 2023.

A model is a folder as on the Hugging Face hub. Weights are read only from ``model.safetensors``, never from a pickle.
transformers comes with the extra ``hf`` and is imported only when an encoder is made.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError

from avel.errors import AvelError
from avel.features.batches import Batches
from avel.features.extractor import make_tag
from avel.features.weights import cache_folder
from avel.files import file_sha256
from avel.reading import read_bytes
from avel.text import first_names

# ViT-B/32 and HTSAT-tiny. The main branches hold only pickles; these revisions are conversions to safetensors.
CLIP_WEIGHTS = "openai/clip-vit-base-patch32@refs/pr/15"
CLAP_WEIGHTS = "laion/clap-htsat-unfused@refs/pr/3"

FRAMES_AT_ONCE, FRAME_BYTES = 16, 32 * 2**20  # CLIP's batch; generous memory of one frame on a device
SEGMENTS_AT_ONCE, SEGMENT_BYTES = 8, 256 * 2**20  # CLAP's batch; it pads each segment to ten seconds

_WEIGHTS = "model.safetensors"
_FILES = f"a folder with config.json, preprocessor_config.json, tokenizer.json and {_WEIGHTS}, as on the hub"
_WANTED = ["*.json", "merges.txt", _WEIGHTS]  # files to download: no pickles, no other frameworks' weights
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")

#: What transformers raises for a folder with missing or wrong content.
_UNFIT = (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, SafetensorError)


class ClipVision:
    """CLIP's vision transformer on each segment, with its patches as a grid: (T, H, W, Dv).

    A feature is a patch's token after the last layer and the layer norm that CLIP applies to the token of the whole
    picture, averaged over the frames of a segment.

    CLIP was trained on the centre of a picture whose shorter side was resized. Here the whole picture is squeezed into
    a square, so that the grid also covers its edges. The aspect ratio is not kept. Cell (0, 0) is at the top left.

    Args:
        weights: a folder, or an id on the hub, which may end in ``@revision``; see `find_folder`.
        weights_sha: sha256 that model.safetensors must have; None takes what is there.
        frames_per_segment: number of evenly spaced frames to average.

    Attributes:
        word_scale: CLIP's learned factor of cosines before the softmax.

    Raises:
        AvelError: an option is out of range, transformers is missing, or the weights are missing or do not match.
    """

    kind: Literal["visual"] = "visual"
    name = "clip"

    def __init__(
        self, weights: str = CLIP_WEIGHTS, weights_sha: str | None = None, frames_per_segment: int = 4
    ) -> None:
        if not 1 <= frames_per_segment <= 1000:
            raise AvelError(f"{frames_per_segment} frames a segment", "1 to 1000", "choose another number")
        model = load_model("clip", weights, weights_sha)
        self._network = model.network
        self._tokenizer = model.tokenizer
        vision = model.network.config.vision_config
        self.frame_size, mean, spread = _picture_settings(model.folder, vision.image_size)
        side = vision.image_size // vision.patch_size
        self.grid = (side, side)
        self.dim: int = vision.hidden_size
        self.frames_per_segment = frames_per_segment
        self.word_scale = float(model.network.logit_scale.exp())
        self._mean, self._spread = torch.tensor(mean), torch.tensor(spread)
        self._batches = Batches(on_cpu=FRAMES_AT_ONCE, elsewhere=4 * FRAMES_AT_ONCE, item_bytes=FRAME_BYTES)
        shaping = {"weights_sha": model.sha256, "frames_per_segment": frames_per_segment}
        self.options: dict[str, Any] = {"weights": model.weights, **shaping}
        self.tag = make_tag(
            self.name,
            kind=self.kind,
            framing="time",
            resize="swscale-bilinear, square",
            layer="last, post_layernorm",
            config_sha=model.config_sha256,
            frame_size=self.frame_size,
            mean=mean,
            spread=spread,
            options=shaping,
        )

    def to(self, device: torch.device) -> None:
        """Move the network to a device. Frames and features stay in main memory."""
        self._network.to(device)
        self._mean, self._spread = self._mean.to(device), self._spread.to(device)
        self._batches.to(device)

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """(T * frames_per_segment, frame_size, frame_size, 3) uint8 RGB -> (T, H, W, Dv) float32."""
        tokens = self._batches(lambda batch: self.tokens(self._on_device(batch)).cpu().numpy(), frames)
        return self._segments(tokens).reshape(-1, *self.grid, self.dim)

    def embed_frames(self, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Embed the pictures and their patches in the space of words, where a cosine says how well a word fits.

        CLIP was trained to compare words with whole pictures, and in its last layer patches attend to one another. As
        in MaskCLIP (Zhou, Loy and Dai, "Extract free dense labels from CLIP", ECCV 2022), patches therefore pass
        through the last layer without attention to others.

        Args:
            frames: (T * frames_per_segment, frame_size, frame_size, 3) uint8 RGB.

        Returns:
            Unit embeddings of the segments, (T, D), and of their patches, (T, H, W, D), float32.
        """
        embedded = self._batches(lambda batch: self.embed(self._on_device(batch)).cpu().numpy(), frames)
        whole = _unit(torch.from_numpy(self._segments(np.ascontiguousarray(embedded[:, 0])))).numpy()
        cells = _unit(torch.from_numpy(self._segments(np.ascontiguousarray(embedded[:, 1:])))).numpy()
        return whole, cells.reshape(len(whole), *self.grid, -1)

    def embed_words(self, texts: Sequence[str]) -> np.ndarray:
        """N texts -> (N, D) float32 unit vectors. Raises AvelError for a text that is too long for CLIP."""
        longest = self._network.config.text_config.max_position_embeddings
        return _embed_words(self._network, self._tokenizer, texts, longest)

    def tokens(self, frames: torch.Tensor) -> torch.Tensor:
        """(N, frame_size, frame_size, 3) uint8 on the network's device -> its patches' tokens, (N, H * W, Dv)."""
        tokens: torch.Tensor = self._network.vision_model.post_layernorm(self._run(frames)[0].last_hidden_state[:, 1:])
        return tokens

    def embed(self, frames: torch.Tensor) -> torch.Tensor:
        """(N, frame_size, frame_size, 3) uint8 on the network's device -> unit embeddings of the picture and its
        patches in the space of words, (N, 1 + H * W, D)."""
        vision, project = self._network.vision_model, self._network.visual_projection
        said, entering = self._run(frames)
        alone = _without_attention(vision.encoder.layers[-1], entering[:, 1:])
        return torch.cat(
            [_unit(project(said.pooler_output))[:, None], _unit(project(vision.post_layernorm(alone)))], dim=1
        )

    def _on_device(self, frames: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(frames)).to(self._mean.device)

    def _run(self, frames: torch.Tensor) -> tuple[Any, torch.Tensor]:
        """(N, frame_size, frame_size, 3) uint8 -> the vision transformer's output, and the input of its last layer."""
        pictures = (frames / 255 - self._mean) / self._spread
        vision = self._network.vision_model
        entering: list[torch.Tensor] = []
        # A hook, as versions of transformers differ in whether and where they return hidden states.
        hook = vision.encoder.layers[-1].register_forward_pre_hook(lambda _, given: entering.append(given[0]))
        try:
            return vision(pixel_values=pictures.permute(0, 3, 1, 2).contiguous()), entering[0]
        finally:
            hook.remove()

    def _segments(self, values: np.ndarray) -> np.ndarray:
        """Means over the frames of each segment: (T * frames_per_segment, ...) -> (T, ...)."""
        means: np.ndarray = torch.from_numpy(values).unflatten(0, (-1, self.frames_per_segment)).mean(1).numpy()
        return means


class ClapAudio:
    """CLAP's unit embedding of each segment's sound, in the space that it shares with words: (T, Da).

    CLAP takes ten seconds. As in its training, a shorter sound is repeated as often as it fits and padded with silence;
    one second fits ten times.

    Args:
        weights: a folder, or an id on the hub, which may end in ``@revision``; see `find_folder`.
        weights_sha: sha256 that model.safetensors must have; None takes what is there.

    Attributes:
        word_scale: CLAP's learned factor of cosines before the softmax.

    Raises:
        AvelError: transformers is missing, or the weights are missing or do not match.
    """

    kind: Literal["audio"] = "audio"
    name = "clap"

    def __init__(self, weights: str = CLAP_WEIGHTS, weights_sha: str | None = None) -> None:
        model = load_model("clap", weights, weights_sha)
        self._network = model.network
        self._tokenizer = model.tokenizer
        try:
            self._spectrogram = import_transformers().ClapFeatureExtractor.from_pretrained(
                model.folder, local_files_only=True
            )
        except _UNFIT as error:
            raise _unfit(model.folder, error) from error
        self.sample_rate: int = self._spectrogram.sampling_rate
        self.dim: int = model.network.config.projection_dim
        self.word_scale = float(model.network.logit_scale_a.exp())
        shaping = {"weights_sha": model.sha256}
        self.options: dict[str, Any] = {"weights": model.weights, **shaping}
        settings = ["feature_size", "hop_length", "fft_window_size", "frequency_min", "frequency_max", "top_db"]
        settings += ["sampling_rate", "max_length_s", "truncation", "padding", "padding_value"]
        self.tag = make_tag(
            self.name,
            kind=self.kind,
            framing="time",
            resampler="swresample",
            config_sha=model.config_sha256,
            spectrogram={name: getattr(self._spectrogram, name) for name in settings},
            options=shaping,
        )
        self._device = torch.device("cpu")
        self._batches = Batches(on_cpu=SEGMENTS_AT_ONCE, elsewhere=SEGMENTS_AT_ONCE, item_bytes=SEGMENT_BYTES)

    def to(self, device: torch.device) -> None:
        """Move the network to a device. Spectrograms are computed on the CPU, and features stay in main memory."""
        self._network.to(device)
        self._device = device
        self._batches.to(device)

    def __call__(self, waveform: np.ndarray) -> np.ndarray:
        """(T, samples) float32 at `sample_rate`, full scale 1 -> (T, Da) float32 unit vectors.

        Raises:
            AvelError: segments are longer than CLAP's input, which would take a random part of them.
        """
        longest = self._spectrogram.nb_max_samples
        if waveform.shape[1] > longest:
            raise AvelError(
                f"segments of {waveform.shape[1] / self.sample_rate:g} s for CLAP, which takes "
                f"{longest / self.sample_rate:g} s",
                "segments that are not longer",
                "choose --segment-seconds 1",
            )
        return self._batches(
            lambda batch: self.listen(self._spectrograms(batch).to(self._device)).cpu().numpy(), waveform
        )

    def embed_words(self, texts: Sequence[str]) -> np.ndarray:
        """N texts -> (N, Da) float32 unit vectors. Raises AvelError for a text that is too long for CLAP."""
        config = self._network.config.text_config
        longest = config.max_position_embeddings - config.pad_token_id - 1  # RoBERTa counts after its padding
        return _embed_words(self._network, self._tokenizer, texts, longest)

    def _spectrograms(self, waveform: np.ndarray) -> torch.Tensor:
        made = self._spectrogram(list(waveform.astype(np.float64)), sampling_rate=self.sample_rate)
        return torch.from_numpy(np.stack(made["input_features"]).astype(np.float32))

    def listen(self, spectrograms: torch.Tensor) -> torch.Tensor:
        """(T, ...) log-mel spectrograms on the network's device -> (T, Da) unit vectors."""
        # If no sound is "longer", transformers marks a random one of the batch, so results would not be repeatable.
        longer = torch.zeros(len(spectrograms), 1, dtype=torch.bool, device=spectrograms.device)
        said = self._network.audio_model(input_features=spectrograms, is_longer=longer)
        return _unit(self._network.audio_projection(said.pooler_output))


@dataclass(frozen=True)
class Model:
    """A model loaded from a folder.

    Attributes:
        network: float32, in evaluation mode, on the CPU.
        tokenizer: its tokenizer.
        folder: its folder.
        weights: argument of `find_folder` that finds it again, also from another process and working folder.
        sha256: of model.safetensors, hexadecimal.
        config_sha256: of config.json, which has settings that the weights do not, such as the activation.
    """

    network: Any
    tokenizer: Any
    folder: Path
    weights: str
    sha256: str
    config_sha256: str


def import_transformers() -> Any:
    """The package transformers. Raises AvelError if it is missing."""
    try:
        import transformers
    except ImportError as error:  # it, or a package that it needs, is missing or too old
        raise AvelError(
            f"CLIP and CLAP need the package transformers: {_first_line(error)}",
            "the extra hf of avel",
            'run: pip install "avel[hf]"',
        ) from error
    return transformers


def find_folder(weights: str, *, moved: bool = False) -> Path:
    """The folder of a model: the named folder, or for a model id the one in avel's cache, or else one from the hub.

    The hub's client looks into its own cache first and downloads what is missing; ``HF_HUB_OFFLINE=1`` forbids that.

    Args:
        weights: a folder, or an id on the hub, which may end in ``@revision``.
        moved: if the named folder is missing, take the folder with that name in avel's cache. So stores and trained
            models, which name the folder that they were made with, can be used on another machine.

    Raises:
        AvelError: it is not found, or the hub cannot be reached; the error says which files to put where.
    """
    folder = os.path.expanduser(weights)
    if os.path.isdir(folder):
        return Path(folder)
    is_id = _HUB_ID.fullmatch(weights) is not None
    name, _, revision = weights.partition("@") if is_id else (weights, "", "")
    kept = cache_folder() / Path(name).name
    if (is_id or moved) and kept.is_dir():
        return kept
    if not is_id:
        raise AvelError(
            f"no such folder: {weights}" + f", and no {kept}" * moved,
            _FILES,
            f"put it at {kept}"
            if moved
            else f"check the path, or give an id on the hub, such as {CLIP_WEIGHTS} or {CLAP_WEIGHTS}",
        )
    import_transformers()
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=_WANTED))
    except Exception as error:  # its own errors, httpx's and Rust's have no other base in common
        options = (f" --revision {revision}" if revision else "") + "".join(f" --include '{some}'" for some in _WANTED)
        raise AvelError(
            f"{weights} is neither a folder nor in {kept}, and the download failed: {_first_line(error)}",
            _FILES,
            f"on a machine with network access, run: hf download {name}{options} --local-dir {kept}\n"
            f"            or take the files from https://huggingface.co/{name}/tree/{revision or 'main'} to {kept}",
        ) from error


def load_model(kind: Literal["clip", "clap"], weights: str, weights_sha: str | None = None) -> Model:
    """Find a model, check it, and load it.

    Args:
        kind: which model it must be.
        weights: see `find_folder`.
        weights_sha: sha256 that model.safetensors must have, as recorded in a store or model; None takes what is there.

    Raises:
        AvelError: transformers is missing, or the weights are missing, a pickle, or do not match.
    """
    transformers = import_transformers()
    folder = find_folder(weights, moved=weights_sha is not None)
    config = _read_json(folder / "config.json")
    if config.get("model_type") != kind:
        raise AvelError(
            f"{folder} holds a model of type {config.get('model_type')!r}",
            f"one of type {kind!r}",
            f"give a folder with a {kind.upper()}, or its id on the hub, such as "
            f"{CLIP_WEIGHTS if kind == 'clip' else CLAP_WEIGHTS}",
        )
    file = folder / _WEIGHTS
    if not file.is_file():
        pickled = (folder / "pytorch_model.bin").is_file()
        raise AvelError(
            f"{folder} has no {_WEIGHTS}" + (", only pytorch_model.bin, a pickle, which avel never opens" * pickled),
            _FILES,
            "download the whole folder again, in a revision that has that file, or convert the pickle once, as in "
            "docs/zero-shot.md",
        )
    sha256, config_sha256 = _sha256(file), _sha256(folder / "config.json")
    if weights_sha and sha256 != weights_sha.lower():
        raise AvelError(
            f"{file} has the sha256 {sha256}",
            f"the weights of sha256 {weights_sha}",
            "put those weights there; features of different weights are never mixed",
        )
    if not (folder / "tokenizer.json").is_file() and not (folder / "merges.txt").is_file():
        raise _unfit(folder, "it has no tokenizer.json")  # transformers would use an empty tokenizer
    network_class = transformers.CLIPModel if kind == "clip" else transformers.ClapModel
    with _quiet(transformers):
        try:
            network, report = network_class.from_pretrained(
                folder, use_safetensors=True, local_files_only=True, output_loading_info=True
            )
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except _UNFIT as error:
            raise _unfit(folder, error) from error
    missing = sorted(report["missing_keys"])
    if missing:  # transformers would fill them with random numbers
        raise _unfit(folder, f"{_WEIGHTS} lacks {first_names(missing, 1)}")
    if len(tokenizer) > network.config.text_config.vocab_size:
        raise _unfit(folder, f"its tokenizer has more words ({len(tokenizer)}) than its network")
    network = network.float().eval().requires_grad_(False)
    named = os.path.abspath(folder) if os.path.isdir(os.path.expanduser(weights)) else weights
    return Model(network, tokenizer, folder, named, sha256, config_sha256)


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Silence the progress bars and warnings of transformers: those that matter are errors here."""
    log = transformers.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()


def _picture_settings(folder: Path, image_size: int) -> tuple[int, list[float], list[float]]:
    """Side of the pictures in pixels, and the mean and spread of red, green and blue on the scale 0 to 1.

    Read from the file itself: transformers' own class needs torchvision or Pillow for what is done here already.
    """
    path = folder / "preprocessor_config.json"
    if path.is_file():
        settings = _read_json(path)
    else:  # where transformers 5 writes it
        path = folder / "processor_config.json"
        settings = _read_json(path).get("image_processor") or {}
    try:
        size = settings["crop_size" if settings.get("do_center_crop", True) else "size"]
        side = size if isinstance(size, int) else size.get("height") or size["shortest_edge"]
        mean, spread = ([float(value) for value in settings[name]] for name in ("image_mean", "image_std"))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _unfit(folder, f"{path.name} has no valid {error}") from error
    if side != image_size or len(mean) != 3 or len(spread) != 3 or not all(value > 0 for value in spread):
        raise _unfit(folder, f"{path.name} does not describe the pictures of {image_size} pixels of config.json")
    return image_size, mean, spread


def _without_attention(layer: Any, tokens: torch.Tensor) -> torch.Tensor:
    """A layer of CLIP's vision transformer in which each token attends only to itself: (N, tokens, Dv) in and out."""
    attention = layer.self_attn
    tokens = tokens + attention.out_proj(attention.v_proj(layer.layer_norm1(tokens)))
    return tokens + layer.mlp(layer.layer_norm2(tokens))


def _embed_words(network: Any, tokenizer: Any, texts: Sequence[str], longest: int) -> np.ndarray:
    tokens = tokenizer(list(texts), padding=True, return_tensors="pt")
    lengths = tokens["attention_mask"].sum(1)
    if int(lengths.max()) > longest:
        text = texts[int(lengths.argmax())]
        raise AvelError(
            f"{int(lengths.max())} tokens in the text {text[:60]!r}...", f"at most {longest}", "shorten the label"
        )
    with torch.inference_mode():
        given = {name: tokens[name].to(network.device) for name in ("input_ids", "attention_mask")}
        return _unit(network.text_projection(network.text_model(**given).pooler_output)).cpu().numpy()


def _unit(values: torch.Tensor) -> torch.Tensor:
    """Scale to unit length along the last axis."""
    return torch.nn.functional.normalize(values, dim=-1)


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(read_bytes(path))
    except FileNotFoundError as error:
        raise _unfit(path.parent, f"{path.name}: no such file") from error
    except (ValueError, RecursionError) as error:
        raise _unfit(path.parent, f"{path.name} is not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise _unfit(path.parent, f"{path.name} is not a JSON object")
    return content


def _sha256(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError as error:
        raise _unfit(path.parent, f"{path.name}: {error.strerror}") from error


def _first_line(error: Exception | str) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _unfit(folder: Path, cause: Exception | str) -> AvelError:
    return AvelError(f"{folder} cannot be used: {_first_line(cause)}", _FILES, "download the whole folder again")
