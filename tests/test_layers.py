"""Layers that models are built of, against NumPy. The oracles and helpers serve tests/test_ccln.py too."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd import gradcheck

from avel.models.layers import AudioGuidedAttention, BiLSTM, Dropout, LinearReLU, SelfAttention

Array = np.ndarray


def randn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def exact(module: nn.Module) -> Any:
    """In float64, without dropout, and with every parameter drawn anew, so that no bias or LayerNorm weight is idle."""
    generator = torch.Generator().manual_seed(0)
    module.double().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.4 + 0.1)
        for norm in module.modules():
            if isinstance(norm, nn.LayerNorm):
                norm.weight += 1  # smaller, every norm would shrink what is left of the input
    return module


def each(oracle: Any, *inputs: torch.Tensor) -> Any:
    """The oracle on one video after the other: stacks of what it returns, an array, a tuple or a dict."""
    results = [oracle(*(tensor.numpy() for tensor in video)) for video in zip(*inputs, strict=True)]
    if isinstance(results[0], dict):
        return {key: np.stack([result[key] for result in results]) for key in results[0]}
    return tuple(map(np.stack, zip(*results, strict=True))) if isinstance(results[0], tuple) else np.stack(results)


def same(got: torch.Tensor, want: Any) -> None:
    np.testing.assert_allclose(got.detach().numpy(), want, rtol=1e-9, atol=1e-11)


# The oracles


def linear(x: Array, layer: Any) -> Array:
    return x @ layer.weight.detach().numpy().T + (0 if layer.bias is None else layer.bias.detach().numpy())


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def softmax(x: Array) -> Array:
    return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


def layer_norm(x: Array, layer: Any) -> Array:
    scaled = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return scaled * layer.weight.detach().numpy() + layer.bias.detach().numpy()


def agva_oracle(
    visual: Array, audio: Array, layer: AudioGuidedAttention, audio_axis: str = "position"
) -> tuple[Array, Array]:
    """Eq. 1 as S1 has it. Released form: hidden[p, j] = (X W_v)[p, j] + (W_g g)[p]; the text's: (W_g g)[j]."""
    num_segments, height, width, _ = visual.shape
    attended, maps = [], np.empty((num_segments, height, width))
    for t in range(num_segments):
        guide = linear(np.maximum(linear(audio[t], layer.audio), 0), layer.audio_hidden)
        scores = []
        for p in range(height * width):
            cell = visual[t, p // width, p % width]
            hidden = linear(np.maximum(linear(cell, layer.visual), 0), layer.visual_hidden)
            hidden = hidden + (guide[p] if audio_axis == "position" else guide)
            scores.append(linear(np.tanh(hidden), layer.score)[0])
        weights = softmax(np.array(scores))
        maps[t] = weights.reshape(height, width)
        attended.append(sum(weights[p] * visual[t, p // width, p % width] for p in range(height * width)))
    return np.stack(attended), maps


def lstm_oracle(x: Array, layer: BiLSTM) -> Array:
    """The LSTM equations, gates in the order input, forget, cell, output."""
    directions = []
    for suffix in ("", "_reverse"):
        w, u, b, c = (
            getattr(layer.lstm, name + suffix).detach().numpy()
            for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
        )
        hidden = cell = np.zeros(u.shape[1])
        outputs = []
        for step in x if suffix == "" else x[::-1]:
            i, f, g, o = np.split(w @ step + b + u @ hidden + c, 4)
            cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
            hidden = sigmoid(o) * np.tanh(cell)
            outputs.append(hidden)
        directions.append(np.stack(outputs if suffix == "" else outputs[::-1]))
    return np.concatenate(directions, -1)


def attention_oracle(x: Array, layer: SelfAttention) -> Array:
    query, key, value = np.split(linear(x, layer.query_key_value), 3, -1)
    size = x.shape[-1] // layer.heads
    heads = []
    for head in range(layer.heads):
        part = slice(head * size, (head + 1) * size)
        heads.append(softmax(query[:, part] @ key[:, part].T / np.sqrt(size)) @ value[:, part])
    return layer_norm(x + linear(np.concatenate(heads, -1), layer.output), layer.norm)


# Audio-guided visual attention


@pytest.mark.parametrize("audio_axis", ["position", "hidden"])
def test_agva_is_s1(audio_axis: Any) -> None:
    layer = exact(AudioGuidedAttention(6, 5, 6, audio_axis=audio_axis))
    visual, audio = randn(1, 3, 4, 2, 3, 6), randn(2, 3, 4, 5)
    attended, attention = layer(visual, audio)
    want = each(lambda v, a: agva_oracle(v, a, layer, audio_axis), visual, audio)
    same(attended, want[0])
    same(attention, want[1])
    same(attention.sum((2, 3)), np.ones((3, 4)))
    other = "hidden" if audio_axis == "position" else "position"
    assert not np.allclose(want[1], each(lambda v, a: agva_oracle(v, a, layer, other), visual, audio)[1])


def test_agva_lets_one_audio_segment_guide_all_visual_ones() -> None:
    layer = exact(AudioGuidedAttention(6, 5, 6))
    visual, audio = randn(1, 3, 4, 2, 3, 6), randn(2, 3, 1, 5)
    for got, want in zip(layer(visual, audio), layer(visual, audio.repeat(1, 4, 1)), strict=True):
        same(got, want.detach().numpy())


def test_agva_has_the_published_number_of_parameters() -> None:
    layer = AudioGuidedAttention(512, 128, 49)
    assert sum(parameter.numel() for parameter in layer.parameters()) == 378_929


def test_agva_begins_with_xavier_weights() -> None:
    """As the released code does: in each map uniform up to sqrt(6 / (inputs + outputs)), more than PyTorch's own."""
    torch.manual_seed(0)
    weights = {name: value for name, value in AudioGuidedAttention(64, 32, 49).named_parameters() if value.ndim == 2}
    assert len(weights) == 5
    for name, weight in weights.items():
        bound = (6 / sum(weight.shape)) ** 0.5
        assert 0.9 * bound < weight.abs().max() <= bound, name
        assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.1), name


def test_agva_of_one_cell_is_the_identity_without_parameters() -> None:
    layer = AudioGuidedAttention(6, 5, 1)
    visual = randn(0, 2, 3, 1, 1, 6)
    attended, attention = layer(visual, randn(1, 2, 3, 5))
    assert not list(layer.parameters()) and attention is None
    same(attended, visual[:, :, 0, 0].numpy())


# Bi-LSTM and self-attention


def test_bilstm_is_the_lstm_equations_in_both_directions() -> None:
    layer = exact(BiLSTM(5, 8))
    features = randn(0, 3, 4, 5)
    same(layer(features), each(lambda x: lstm_oracle(x, layer), features))
    assert layer(features).shape == (3, 4, 8)


def test_bilstm_keeps_the_precision_of_its_parameters_under_autocast() -> None:
    layer, features = BiLSTM(5, 8), torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0)).bfloat16()
    want = layer(features.float())
    with torch.autocast("cpu", torch.bfloat16):
        got = layer(features)
    assert got.dtype == torch.float32 and torch.equal(got, want)


def test_self_attention_is_that_of_torch_with_residual_and_norm() -> None:
    layer = exact(SelfAttention(8, 2))
    torchs = nn.MultiheadAttention(8, 2, batch_first=True, dtype=torch.float64)
    torchs.load_state_dict(
        {
            "in_proj_weight": layer.query_key_value.weight,
            "in_proj_bias": layer.query_key_value.bias,
            "out_proj.weight": layer.output.weight,
            "out_proj.bias": layer.output.bias,
        }
    )
    x = randn(0, 3, 4, 8)
    same(layer(x), layer.norm(x + torchs(x, x, x)[0]).detach().numpy())
    same(layer(x), each(lambda one: attention_oracle(one, layer), x))


# Dropout


def dropped(rate: float, features: torch.Tensor, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    result: torch.Tensor = Dropout(rate)(features)
    return result


@pytest.mark.parametrize(("rate", "share"), [(0.01, 3 / 256), (0.2, 51 / 256), (0.5, 0.5), (0.9, 230 / 256)])
def test_dropout_zeroes_its_share_in_every_place_and_independently(rate: float, share: float) -> None:
    """Eight features share one draw of 64 bits: each of them, and each pair of them, at its own frequency."""
    count = 30_000
    zeros = dropped(rate, torch.ones(count, 8)) == 0

    def near(found: torch.Tensor, probability: float, number: int) -> bool:
        return abs(found.double().mean().item() - probability) < 4.5 * (probability * (1 - probability) / number) ** 0.5

    assert near(zeros, share, 8 * count)
    for first in range(8):
        assert near(zeros[:, first], share, count)
        assert near(zeros[:-1, first] & zeros[1:, first], share**2, count - 1)
        assert all(near(zeros[:, first] & zeros[:, second], share**2, count) for second in range(first))


@pytest.mark.parametrize("rate", [0.05, 0.2, 0.5, 0.75])
def test_dropout_scales_what_it_keeps_so_that_the_mean_stays(rate: float) -> None:
    features = dropped(rate, torch.ones(200_000, dtype=torch.float64))
    kept = features[features != 0]
    assert (kept == kept[0]).all() and kept[0].item() == pytest.approx(1 / (1 - rate), rel=1 / 256 / (1 - rate))
    assert features.mean().item() == pytest.approx(1, abs=4.5 * ((kept[0].item() - 1) / 200_000) ** 0.5)


def test_the_seed_fixes_the_mask() -> None:
    features, layer = torch.ones(50, 7), Dropout(0.5)
    torch.manual_seed(3)
    first, second = layer(features), layer(features)
    assert torch.equal(first, dropped(0.5, features, 3)) and not torch.equal(first, second)
    assert not torch.equal(first, dropped(0.5, features, 4))


def test_dropout_is_off_in_evaluation_and_at_rate_zero() -> None:
    features = torch.ones(50)
    assert Dropout(0.5).eval()(features) is features and Dropout(0).train()(features) is features


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dropout_keeps_the_type(dtype: torch.dtype) -> None:
    features = dropped(0.2, torch.ones(1001, dtype=dtype))
    assert features.dtype == dtype
    assert set(features.tolist()) == {0.0, torch.tensor(256 / 205, dtype=dtype).item()}  # 51 of 256 are dropped


@pytest.mark.parametrize("shape", [(), (1,), (3,), (9,), (5, 1), (3, 3, 3), (2, 7), (0, 4)])
def test_dropout_takes_every_number_of_elements(shape: Sequence[int]) -> None:
    features = dropped(0.5, torch.ones(shape))
    assert features.shape == torch.Size(shape) and ((features == 0) | (features == 2)).all()


def test_dropout_of_a_transposed_tensor_acts_on_its_own_elements() -> None:
    features = torch.arange(1.0, 22).view(3, 7).mT
    after = dropped(0.5, features)
    assert after.shape == (7, 3) and ((after == 0) | (after == 2 * features)).all() and after.any()


def test_the_gradient_of_dropout_is_its_mask() -> None:
    features = randn(0, 11, 3).requires_grad_()
    after = dropped(0.3, features)
    after.sum().backward()
    assert features.grad is not None and (features.grad == 0).any() and (features.grad > 1).any()
    same(features.grad * features, after.detach().numpy())


@pytest.mark.parametrize("rate", [1e-9, 0.001, 0.999, 0.999999])
def test_dropout_at_rates_of_nearly_nothing_and_nearly_one_is_finite(rate: float) -> None:
    features = dropped(rate, torch.ones(10_000))
    assert features.isfinite().all() and (features != 0).double().mean().item() == pytest.approx(1 - rate, abs=0.01)


# A linear map, ReLU and dropout


@pytest.mark.parametrize("shape", [(7, 5), (2, 3, 5), (2, 3, 4, 5)])
def test_linear_relu_drops_as_dropout_after_relu_does(shape: tuple[int, ...]) -> None:
    layer = exact(LinearReLU(5, 6, 0.3)).train()
    features = randn(1, *shape).requires_grad_()
    inputs = (features, layer.weight, layer.bias)
    torch.manual_seed(2)
    got = layer(features)
    assert got.shape == (*shape[:-1], 6)
    torch.manual_seed(2)
    kept = Dropout(0.3)(torch.ones(*shape[:-1], 6, dtype=torch.float64))
    want = torch.relu(features @ layer.weight.T + layer.bias) * kept
    assert (kept == 0).any() and (kept > 0).any() and ((want == 0) & (kept > 0)).any()  # dropped, kept, below 0
    same(got, want.detach().numpy())
    weights = randn(3, *got.shape)
    gradients = [torch.autograd.grad((out * weights).sum(), inputs) for out in (got, want)]
    for one, other in zip(*gradients, strict=True):
        same(one, other.numpy())


def test_linear_relu_gradients() -> None:
    layer = exact(LinearReLU(3, 4, 0.4)).train()

    def seeded(features: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(0)
        result: torch.Tensor = layer(features)
        return result

    assert gradcheck(seeded, (randn(0, 3, 3).requires_grad_(), layer.weight, layer.bias))


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_linear_relu_without_dropping_is_a_linear_map_and_relu(rate: float) -> None:
    layer, features = exact(LinearReLU(5, 6, rate)), randn(0, 2, 3, 5)
    want = np.maximum(linear(features.numpy(), layer), 0)
    same(layer.eval()(features), want)
    assert rate == 0 or not torch.equal(layer.train()(features), layer.eval()(features))
    if rate == 0:
        same(layer.train()(features), want)


def test_linear_relu_learns_under_autocast() -> None:
    layer = LinearReLU(5, 6, 0.3)
    with torch.autocast("cpu", torch.bfloat16):
        half = layer(torch.randn(4, 5))
    half.float().sum().backward()
    assert half.dtype == torch.bfloat16 and layer.weight.grad is not None and layer.weight.grad.isfinite().all()
