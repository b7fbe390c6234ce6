"""CLIP and CLAP with tiny random weights, as folders like those on the hub. Made on the spot, without a network."""

from __future__ import annotations

import json
import os
import string
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

needs_transformers = pytest.mark.skipif(
    find_spec("transformers") is None and not os.environ.get("AVEL_PARITY"),  # `make parity` must not pass without it
    reason='transformers is not installed: pip install "avel[hf]"',
)

IMAGE, PATCH, SPACE = 32, 8, 12  # pixels of a picture and of a patch; width of the space shared with words


def write_clip(folder: Path, seed: int = 0, *, layers: int = 2) -> Path:
    """A CLIP of a 4 x 4 grid whose words are spelled letter by letter."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    tower = {"intermediate_size": 32, "num_hidden_layers": layers, "num_attention_heads": 2, "projection_dim": SPACE}
    config = CLIPConfig(
        text_config={"vocab_size": 80, "hidden_size": 16, "max_position_embeddings": 48, "bos_token_id": 0}
        | {"eos_token_id": 1, "pad_token_id": 1}
        | tower,
        vision_config={"hidden_size": 24, "image_size": IMAGE, "patch_size": PATCH} | tower,
        projection_dim=SPACE,
    )
    _save(CLIPModel, config, folder, seed)
    letters = string.ascii_lowercase + string.digits + ".,"
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    CLIPTokenizer(vocab={token: index for index, token in enumerate(tokens)}, merges=[]).save_pretrained(folder)
    settings = {
        "do_center_crop": True,
        "crop_size": IMAGE,  # a number, as in OpenAI's repositories
        "do_resize": True,
        "size": IMAGE,
        "do_normalize": True,
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.3, 0.25, 0.2],
        "image_processor_type": "CLIPImageProcessor",
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def write_clap(folder: Path, seed: int = 0, *, fused: bool = False) -> Path:
    """A CLAP that hears two seconds, in steps of 50 ms and 16 bands."""
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, RobertaTokenizer

    audio = {"window_size": 2, "num_mel_bins": 16, "spec_size": 32, "depths": [1, 1], "num_attention_heads": [2, 2]}
    audio |= {"hidden_size": 16, "patch_embeds_hidden_size": 8, "num_hidden_layers": 2, "projection_dim": SPACE}
    if fused:
        audio |= {"enable_fusion": True, "fusion_type": "aff_2d"}
    config = ClapConfig(
        text_config={"vocab_size": 60, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
        | {"num_attention_heads": 2, "max_position_embeddings": 60, "pad_token_id": 1, "projection_dim": SPACE},
        audio_config=audio,
        projection_dim=SPACE,
    )
    _save(ClapModel, config, folder, seed)
    tokens = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *string.ascii_letters[:50], "Ġ", "."]
    RobertaTokenizer(vocab={token: index for index, token in enumerate(tokens)}, merges=[]).save_pretrained(folder)
    extractor = ClapFeatureExtractor(
        feature_size=16, max_length_s=2, hop_length=2400, truncation="fusion" if fused else "rand_trunc"
    )
    extractor.save_pretrained(folder)
    return folder


def _save(network: Any, config: Any, folder: Path, seed: int) -> None:
    """Weights large enough that every part of the network changes what comes out; the same seed gives the same."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = network(config)
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.data = torch.randn(weight.shape) * 0.3
    model.save_pretrained(folder)
