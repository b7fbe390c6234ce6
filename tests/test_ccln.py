"""CCLN, equation by equation, against oracles in NumPy that are written from the paper, one video at a time."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd import gradcheck

from avel import losses
from avel.errors import AvelError
from avel.models import build_model
from avel.models.ccln import (
    CCLN,
    AudioGuidedAttention,
    ContrastiveBranch,
    ForegroundEnhancement,
    Fusion,
    Integration,
    Interaction,
    gate,
)
from avel.models.layers import BiLSTM, SelfAttention
from avel.types import Target

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
    return module


def tiny(**options: Any) -> CCLN:
    sizes: dict[str, Any] = {"audio_dim": 5, "visual_dim": 6, "grid": (2, 3), "num_classes": 3, "task": "full"}
    return build_model("ccln", **{**sizes, "width": 8, "heads": 2, **options})  # type: ignore[return-value]


def batch(num_videos: int = 4, num_segments: int = 5, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, Target]:
    generator = torch.Generator().manual_seed(seed)
    audio = torch.randn(num_videos, num_segments, 5, generator=generator)
    visual = torch.randn(num_videos, num_segments, 2, 3, 6, generator=generator)
    labels = torch.randint(4, (num_videos, num_segments), generator=generator)
    return audio, visual, Target(labels, torch.arange(num_videos) % 4)


def each(oracle: Any, *inputs: torch.Tensor) -> Any:
    """The oracle on one video after the other."""
    results = [oracle(*(tensor.numpy() for tensor in video)) for video in zip(*inputs, strict=True)]
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


def agva_oracle(visual: Array, audio: Array, layer: AudioGuidedAttention) -> tuple[Array, Array]:
    """S1, released form: hidden[p, j] = (X W_v)[p, j] + (W_g g)[p]."""
    num_segments, height, width, _ = visual.shape
    attended, maps = [], np.empty((num_segments, height, width))
    for t in range(num_segments):
        sound = linear(np.maximum(linear(audio[t], layer.audio), 0), layer.audio_hidden)
        scores = []
        for p in range(height * width):
            cell = visual[t, p // width, p % width]
            hidden = linear(np.maximum(linear(cell, layer.visual), 0), layer.visual_hidden) + sound[p]
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


def sbi_oracle(visual: Array, audio: Array, layer: Interaction) -> tuple[Array, Array]:
    """Eq. 4-10, entry by entry."""
    v1, v2 = (
        visual @ layer.visual_value.weight.detach().numpy().T,
        visual @ layer.visual_query.weight.detach().numpy().T,
    )
    a1, a2 = audio @ layer.audio_key.weight.detach().numpy().T, audio @ layer.audio_value.weight.detach().numpy().T
    h = softmax(v2 @ a1.T / np.sqrt(visual.shape[1]))
    mixed_visual, mixed_audio = visual.copy(), audio.copy()
    for i in range(len(visual)):
        kept = [j for j in range(len(audio)) if h[i, j] > layer.threshold]
        for j in kept:
            mixed_visual[i] += h[i, j] / sum(h[i, k] for k in kept) * a2[j]
    for j in range(len(audio)):
        kept = [i for i in range(len(visual)) if h[i, j] > layer.threshold]
        for i in kept:
            mixed_audio[j] += h[i, j] / sum(h[k, j] for k in kept) * v1[i]
    return mixed_visual, mixed_audio


def integration_oracle(visual: Array, audio: Array, layer: Integration) -> tuple[Array, Array]:
    """Eq. 11, 12."""
    results = []
    for x, (attention, fc, _, norm) in ((visual, layer.visual), (audio, layer.audio)):
        results.append(layer_norm(linear(attention_oracle(x, attention), fc), norm))
    return results[0], results[1]


def fee_oracle(fused: Array, visual: Array, audio: Array, layer: ForegroundEnhancement) -> Array:
    """Eq. 16, 18-20, with the gates in the log domain."""
    z = linear(fused, layer.event).max(0)
    for x, head in ((visual, layer.visual), (audio, layer.audio)):
        for c in range(len(z)):
            best = sorted(linear(x, head)[:, c], reverse=True)[: layer.top_segments]
            z[c] += np.log(sigmoid(np.mean(best)))
    return z


def branch_oracle(stream: Array, layer: ContrastiveBranch) -> Array:
    """Eq. 25, LayerNorm before the map to E."""
    return linear(
        layer_norm(linear(attention_oracle(stream, layer.attention), layer.linear), layer.norm), layer.embedding
    )


# Fusion stage


def test_agva_is_s1() -> None:
    layer = exact(AudioGuidedAttention(6, 5, 6))
    visual, audio = randn(1, 3, 4, 2, 3, 6), randn(2, 3, 4, 5)
    attended, attention = layer(visual, audio)
    want = each(lambda v, a: agva_oracle(v, a, layer), visual, audio)
    same(attended, want[0])
    same(attention, want[1])
    same(attention.sum((2, 3)), np.ones((3, 4)))


def test_agva_has_the_published_number_of_parameters() -> None:
    layer = AudioGuidedAttention(512, 128, 49)
    assert sum(parameter.numel() for parameter in layer.parameters()) == 378_929


def test_agva_of_one_cell_is_the_identity_without_parameters() -> None:
    layer = AudioGuidedAttention(6, 5, 1)
    visual = randn(0, 2, 3, 1, 1, 6)
    attended, attention = layer(visual, randn(1, 2, 3, 5))
    assert not list(layer.parameters()) and attention is None
    same(attended, visual[:, :, 0, 0].numpy())


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


def test_fusion_is_equations_1_to_3() -> None:
    layer = exact(Fusion(6, 5, 6, width=8, heads=2, dropout=0.2))
    visual, audio = randn(1, 2, 4, 2, 3, 6), randn(2, 2, 4, 5)

    def oracle(v: Array, a: Array) -> tuple[Array, Array, Array]:
        attended, attention = agva_oracle(v, a, layer.attention)
        visual_fused = attention_oracle(lstm_oracle(attended, layer.visual[0]), layer.visual[1])
        return visual_fused, attention_oracle(lstm_oracle(a, layer.audio[0]), layer.audio[1]), attention

    for got, want in zip(layer(visual, audio), each(oracle, visual, audio), strict=True):
        same(got, want)


# Interaction stage


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 999), st.integers(1, 5), st.integers(1, 5), st.sampled_from([0.0, 0.05, 0.3, 0.6, 0.95]))
@pytest.mark.filterwarnings("ignore:.*audio segments")
def test_interaction_is_equations_4_to_10(seed: int, num_visual: int, num_audio: int, threshold: float) -> None:
    layer = exact(Interaction(4, threshold, dropout=0.2))
    visual, audio = 2 * randn(seed, 2, num_visual, 4), 2 * randn(seed + 1, 2, num_audio, 4)
    want = each(lambda v, a: sbi_oracle(v, a, layer), visual, audio)
    for got, wanted in zip(layer(visual, audio), want, strict=True):
        same(got, wanted)


def test_interaction_has_exactly_w1_to_w4() -> None:
    names = {f"{name}.weight" for name in ("visual_value", "visual_query", "audio_key", "audio_value")}
    layer = Interaction(4, 0.05)
    assert {name: tuple(p.shape) for name, p in layer.named_parameters()} == dict.fromkeys(names, (4, 4))


def test_interaction_by_hand() -> None:
    """D = 1, one look at two sounds: scores 0 and ln 3, so H = 1/4, 3/4, and tau = 0.5 leaves the second alone."""
    layer = Interaction(1, 0.5).double()
    with torch.no_grad():
        for weight, value in zip(layer.parameters(), (10.0, 1.0, 1.0, 100.0), strict=True):  # W1 .. W4
            weight.fill_(value)
    visual, audio = torch.ones(1, 1, 1).double(), torch.tensor([[[0.0], [np.log(3)]]]).double()
    with pytest.warns(UserWarning, match="2 audio segments"):
        mixed_visual, mixed_audio = layer(visual, audio)
    same(mixed_visual, [[[1 + 100 * np.log(3)]]])
    same(mixed_audio, [[[0.0], [np.log(3) + 10]]])  # the first sound lost everything and stays as it was


def test_the_gate_is_strict() -> None:
    """H = 1/4 everywhere is not above tau = 1/4, though it is above any less."""
    even = torch.full((1, 4, 4), 0.25)
    assert all((part == 0).all() for part in gate(even, 0.25))
    assert all((part == 0.25).all() for part in gate(even, 0.2499))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 999), st.floats(0, 0.9), st.floats(0.1, 30))
def test_gate_rows_sum_to_one_or_nothing(seed: int, threshold: float, sharpness: float) -> None:
    correlation = (sharpness * randn(seed, 2, 4, 3)).softmax(-1)
    for part, kept in zip(gate(correlation, threshold), (correlation, correlation.mT), strict=True):
        survivors = kept > threshold
        same(part.sum(-1), survivors.any(-1).double().numpy())
        assert ((part > 0) == survivors).all()


def test_gate_gradients_with_a_row_and_a_column_cut_whole() -> None:
    correlation = torch.tensor([[[0.34, 0.33, 0.33], [0.1, 0.8, 0.1], [0.05, 0.25, 0.7]]], dtype=torch.float64)
    assert (gate(correlation, 0.4)[0][0, 0] == 0).all() and (gate(correlation, 0.4)[1][0, 0] == 0).all()
    assert gradcheck(lambda h: gate(h, 0.4), (correlation.requires_grad_(),))


def test_a_large_gradient_at_a_row_cut_whole_gives_no_nan() -> None:
    """Divided by the smallest normal number it would overflow, and times 0 be NaN."""
    correlation = torch.tensor([[[0.34, 0.33, 0.33], [0.1, 0.8, 0.1]]], requires_grad=True)
    to_visual, to_audio = gate(correlation, 0.4)
    (1e6 * (to_visual.sum() + to_audio.sum())).backward()
    assert correlation.grad is not None and correlation.grad.isfinite().all()


@pytest.mark.parametrize("threshold", [0.05, 0.3, 0.45])
@pytest.mark.filterwarnings("ignore:.*audio segments")
def test_interaction_gradients(threshold: float) -> None:
    layer = exact(Interaction(3, threshold))
    visual, audio = randn(3, 2, 3, 3).requires_grad_(), randn(4, 2, 4, 3).requires_grad_()
    assert gradcheck(lambda v, a, *_: layer(v, a), (visual, audio, *layer.parameters()))


def test_interaction_warns_where_equal_correlations_would_all_be_cut() -> None:
    layer = Interaction(4, 0.05)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer(torch.randn(1, 25, 4), torch.randn(1, 19, 4))
    with pytest.warns(UserWarning, match="20 audio segments"):
        layer(torch.randn(1, 3, 4), torch.randn(1, 20, 4))


# Integration stage


def test_integration_is_equations_11_and_12() -> None:
    layer = exact(Integration(8, 2, 0.2))
    visual, audio = randn(1, 2, 4, 8), randn(2, 2, 3, 8)
    want = (
        each(lambda v: integration_oracle(v, v, layer)[0], visual),
        each(lambda a: integration_oracle(a, a, layer)[1], audio),
    )
    for got, wanted in zip(layer(visual, audio), want, strict=True):
        same(got, wanted)


@pytest.mark.parametrize("num_segments", [1, 3, 4, 6])
def test_foreground_enhancement_is_equations_16_and_18_to_20(num_segments: int) -> None:
    layer = exact(ForegroundEnhancement(8, 3, top_segments=4))
    streams = [randn(seed, 2, num_segments, 8) for seed in range(3)]
    same(layer(*streams), each(lambda *one: fee_oracle(*one, layer), *streams))


def test_foreground_enhancement_gradients_through_the_loss() -> None:
    layer = exact(ForegroundEnhancement(4, 3, top_segments=2))
    streams = [randn(seed, 3, 4, 4).requires_grad_() for seed in range(3)]
    video = torch.tensor([2, 3, 0])
    assert gradcheck(
        lambda *inputs: losses.foreground_enhancement(layer(*inputs[:3]), video), (*streams, *layer.parameters())
    )


# Contrastive branch


def test_contrastive_branch_is_equation_25_and_no_constant() -> None:
    layer = exact(ContrastiveBranch(8, 2, 0.2, embedding_width=1))
    stream = randn(0, 2, 5, 8)
    same(layer(stream), each(lambda one: branch_oracle(one, layer), stream))
    assert layer(stream).std() > 1e-3  # LayerNorm over a width of 1, as printed, would give its bias everywhere


# The whole


def test_ccln_is_its_parts_in_the_order_of_the_paper() -> None:
    model = exact(tiny(embedding_width=2))
    audio, visual = randn(1, 3, 5, 5), randn(2, 3, 5, 2, 3, 6)
    output = model(audio, visual)

    def oracle(v: Array, a: Array) -> tuple[Array, ...]:
        fusion = model.fusion
        attended, attention = agva_oracle(v, a, fusion.attention)
        v_f = attention_oracle(lstm_oracle(attended, fusion.visual[0]), fusion.visual[1])
        a_f = attention_oracle(lstm_oracle(a, fusion.audio[0]), fusion.audio[1])
        v_i, a_i = sbi_oracle(v_f, a_f, model.interaction)
        v_z, a_z = integration_oracle(v_i, a_i, model.integration)
        p_out = (v_z + a_z) / 2  # eq. 13
        p_o, p_f = linear(p_out, model.classifier), linear(p_out, model.fusion_embedding)  # eq. 14, 15
        return p_o, fee_oracle(p_out, v_i, a_i, model.foreground), p_f, branch_oracle(v_f, model.branch), attention

    logits, event, fusion, branch, attention = each(oracle, visual, audio)
    same(output.logits, logits)
    same(output.parts["logits"], logits)
    same(output.parts["event"], event)
    same(output.parts["fusion"], fusion.reshape(3, -1))
    same(output.parts["branch"], branch.reshape(3, -1))
    same(output.attention, attention)
    assert not output.multilabel


def test_loss_is_equation_31_with_the_start_weights() -> None:
    model, (audio, visual, target) = tiny().eval(), batch()
    parts = model(audio, visual).parts
    terms = model.loss(parts, target)
    contrast = losses.wccl(parts["fusion"], parts["branch"], target.video, temperature=0.1, normalize=True)
    assert list(terms) == ["classification", "fee", "wccl", "total"]
    assert terms["classification"] == losses.segment_cross_entropy(parts["logits"], target.labels)
    assert terms["fee"] == 150 / 128 * losses.foreground_enhancement(parts["event"], target.video)
    assert terms["wccl"] == 25 / 128 * contrast
    assert terms["total"].item() == pytest.approx(sum(terms[name].item() for name in list(terms)[:3]))


def test_the_defaults_are_those_of_the_specification() -> None:
    model = build_model("ccln", audio_dim=128, visual_dim=512, grid=(7, 7), num_classes=28, task="full")
    assert isinstance(model, CCLN)
    dropouts = [module.p for module in model.modules() if isinstance(module, nn.Dropout)]
    assert model.classifier.in_features == 256 and set(dropouts) == {0.2}
    assert {module.heads for module in model.modules() if isinstance(module, SelfAttention)} == {4}
    assert model.interaction.threshold == 0.05 and model.foreground.top_segments == 4
    assert model.fusion_embedding.out_features == model.branch.embedding.out_features == 1
    assert model.temperature == 0.1
    assert len({id(p) for p in model.parameters()}) == len(list(model.parameters()))  # nothing is shared


def finite_step(model: nn.Module, audio: torch.Tensor, visual: torch.Tensor, target: Target) -> dict[str, torch.Tensor]:
    model.zero_grad()
    output = model(audio, visual)
    terms: dict[str, torch.Tensor] = model.loss(output.parts, target)  # type: ignore[operator]
    terms["total"].backward()
    assert all(term.isfinite() for term in terms.values()), terms
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert output.probabilities().isfinite().all()
    return terms


@pytest.mark.parametrize(("num_videos", "num_segments"), [(1, 1), (1, 5), (4, 1), (3, 2), (2, 19)])
def test_every_small_shape_is_finite(num_videos: int, num_segments: int) -> None:
    finite_step(tiny(), *batch(num_videos, num_segments))


@pytest.mark.filterwarnings("ignore:.*audio segments")
def test_long_windows_whose_correlations_are_all_cut_are_finite() -> None:
    model = tiny()
    nn.init.zeros_(model.interaction.visual_query.weight)
    finite_step(model, *batch(2, 40))


@pytest.mark.parametrize("stream", ["audio", "visual", "both"])
def test_a_zeroed_stream_is_finite(stream: str) -> None:
    audio, visual, target = batch()
    finite_step(tiny(), audio * (stream == "visual"), visual * (stream == "audio"), target)


def test_a_batch_without_events_has_no_fee_loss_and_finite_gradients() -> None:
    audio, visual, target = batch()
    terms = finite_step(tiny(), audio, visual, Target(torch.full_like(target.labels, 3), torch.full((4,), 3)))
    assert terms["fee"] == 0


def test_one_class_and_one_cell() -> None:
    audio, visual, _ = batch()
    model = tiny(grid=(1, 1), num_classes=1)
    labels = torch.tensor([[0, 1, 1, 0, 1]] * 4)
    finite_step(model, audio, visual[:, :, :1, :1], Target(labels, torch.zeros(4, dtype=torch.long)))
    assert model(audio, visual[:, :, :1, :1]).attention is None


def test_mixed_precision_is_finite_and_its_losses_are_float32() -> None:
    audio, visual, target = batch()
    model = tiny().eval()
    want = model.loss(model(audio, visual).parts, target)
    with torch.autocast("cpu", torch.bfloat16):
        terms = finite_step(model, audio, visual, target)
    assert {term.dtype for term in terms.values()} == {torch.float32}
    assert terms["total"].item() == pytest.approx(want["total"].item(), rel=0.1)


def test_every_linear_map_but_the_last_ones_is_followed_by_dropout() -> None:
    """At a rate of nearly 1 a dropped map passes on nothing but zeros: what is left are residuals and norms."""
    layer = Interaction(8, 0.05, dropout=0.999999).train()
    visual, audio = torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    for got, want in zip(layer(visual, audio), (visual, audio), strict=True):
        assert torch.equal(got, want)
    attention = SelfAttention(8, 2, dropout=0.999999).train()
    assert torch.allclose(attention(visual), attention.norm(visual))
    agva = AudioGuidedAttention(6, 5, 6, dropout=0.999999).train()
    assert torch.allclose(agva(torch.randn(1, 2, 2, 3, 6), torch.randn(1, 2, 5))[1], torch.tensor(1 / 6))


# What users get wrong


@pytest.mark.parametrize(
    ("audio_shape", "visual_shape"),
    [
        ((2, 5, 4), (2, 5, 2, 3, 6)),
        ((2, 5, 5), (2, 5, 2, 3, 7)),
        ((2, 5, 5), (2, 5, 3, 2, 6)),
        ((2, 5, 5), (2, 4, 2, 3, 6)),
        ((2, 5, 5), (1, 5, 2, 3, 6)),
        ((2, 5, 5), (2, 5, 6)),
        ((5, 5), (5, 2, 3, 6)),
        ((2, 0, 5), (2, 0, 2, 3, 6)),
        ((0, 5, 5), (0, 5, 2, 3, 6)),
    ],
)
def test_wrong_shapes_are_named(audio_shape: tuple[int, ...], visual_shape: tuple[int, ...]) -> None:
    with pytest.raises(AvelError) as caught:
        tiny()(torch.zeros(audio_shape), torch.zeros(visual_shape))
    assert str(audio_shape) in caught.value.found and str(visual_shape) in caught.value.found
    assert "audio (B, T, 5) and visual (B, T, 2, 3, 6)" in caught.value.expected


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"width": 9, "heads": 3}, "even"),
        ({"width": 8, "heads": 3}, "divisible by heads"),
        ({"width": 0}, "even"),
        ({"heads": -2}, "divisible"),
        ({"dropout": 1.0}, "dropout 1.0"),
        ({"threshold": 1.0}, "threshold 1.0"),
        ({"threshold": -0.1}, "threshold -0.1"),
        ({"top_segments": 0}, "top_segments 0"),
        ({"embedding_width": 0}, "embedding_width 0"),
        ({"temperature": 0.0}, "temperature 0.0"),
        ({"fee_weight": -1.0}, "loss weights -1.0"),
        ({"task": "weak"}, "task 'weak' for ccln\n  expected: full"),
    ],
)
def test_impossible_options_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(AvelError) as caught:
        tiny(**options)
    assert words in str(caught.value)
