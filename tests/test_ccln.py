"""CCLN, equation by equation, against oracles in NumPy that are written from the paper, one video at a time.

Where the paper leaves something open or cannot be computed as printed, the oracle follows ``docs/fidelity.md``. The
oracles read the options from their arguments, not from the model.

==========  ==================================================================================
equation    test
==========  ==================================================================================
1-3         test_fusion_is_equations_1_to_3
4-10        test_interaction_is_equations_4_to_10
11-12       test_integration_is_equations_11_and_12
13-15, 21   test_ccln_is_its_parts_in_the_order_of_the_paper
16, 18-20   test_foreground_enhancement_is_equations_16_and_18_to_20
17          test_distances_are_equation_17_on_and_off_the_diagonal
22-24       test_weak_head_is_equations_22_to_24
25-26       test_contrastive_branch_is_equations_25_and_26_and_no_constant
27          test_the_contrastive_loss_is_equation_27 (and test_wccl_is_equation_27 of test_losses)
28-31       test_full_loss_is_equations_28_to_31
32-35       test_weak_loss_is_equations_32_to_35
36-38       test_cml_loss_is_equations_36_to_38
==========  ==================================================================================
"""

import dataclasses
import functools
import math
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_layers import (
    Array,
    agva_oracle,
    attention_oracle,
    each,
    exact,
    layer_norm,
    linear,
    lstm_oracle,
    randn,
    same,
    sigmoid,
    softmax,
)
from test_losses import contrastive_oracle, distance_oracle, focal_oracle, log_softmax_oracle, softmax_focal_oracle
from torch import nn
from torch.autograd import gradcheck

from avel import losses
from avel.cml import query
from avel.data.loader import Batch
from avel.errors import AvelError
from avel.models import build_model
from avel.models.ccln import (
    CCLN,
    CCLNOptions,
    ContrastiveBranch,
    ForegroundEnhancement,
    Fusion,
    Interaction,
    WeakHead,
    gate,
)
from avel.models.layers import AudioGuidedAttention, BiLSTM, Dropout, SelfAttention, distances
from avel.types import DistanceOutput, SegmentOutput, Target

TASKS = ("full", "weak", "cml")
BRANCHES = ("AV", "AV+V", "AV+A", "AV+V+A")
ABLATIONS = ("nothing", "fusion", "agva", "bilstm", "self_attention", "sbi", "fee", "integration")
WITHOUT = [(task, part) for task in TASKS for part in ABLATIONS if task != "cml" or part not in ("fee", "integration")]

every_task = pytest.mark.parametrize("task", TASKS)

#: Every option but ``dropout``, with values to compare with the default and the tasks in which they make a difference.
OPTIONS: list[tuple[str, dict[str, Any]]] = [
    *((task, {"without": part}) for task, part in WITHOUT),
    *((task, {"branch": branch}) for task in TASKS for branch in BRANCHES),
    *((task, {"input_map": True}) for task in TASKS),
    *((task, {"audio_axis": "hidden"}) for task in TASKS),
    *((task, {"threshold": 0.19}) for task in TASKS),
    *((task, {"tau_scale": "relative", "threshold": 0.9}) for task in TASKS),
    *((task, {"width": 12, "heads": 3}) for task in TASKS),
    *((task, {"fee_gate": "product"}) for task in ("full", "weak")),
    ("full", {"fee_level": "segment"}),
    ("full", {"fee_level": "segment", "fee_gate": "product"}),
    ("weak", {"weak_pool": "sum"}),
    ("cml", {"cml_visual": "pooled"}),
]


def tiny(task: str = "full", **options: Any) -> CCLN:
    sizes: dict[str, Any] = {"audio_dim": 5, "visual_dim": 6, "grid": (2, 3), "num_classes": 3}
    return build_model("ccln", **{**sizes, "task": task, "width": 8, "heads": 2, **options})  # type: ignore[return-value]


def drawn(task: str = "full", **options: Any) -> CCLN:
    """`exact`, with correlations far enough from equal that the gate has something to cut and something to keep."""
    model = exact(tiny(task, **options))
    if model.interaction is not None:
        with torch.no_grad():
            model.interaction.visual_query.weight *= 5
    return model  # type: ignore[no-any-return]


def target_of(labels: torch.Tensor, video: torch.Tensor, form: str = "onehot", num_classes: int = 3) -> Target:
    one_hot = torch.eye(num_classes + 1)
    return Target(labels, video, one_hot[video] if form == "onehot" else one_hot[labels].mean(1))


def batch(
    num_videos: int = 4, num_segments: int = 5, seed: int = 0, form: str = "onehot"
) -> tuple[torch.Tensor, torch.Tensor, Target]:
    """Videos of class 0, 1, 2, none, 0 and so on, whose events leave out the first segment and often the last."""
    generator = torch.Generator().manual_seed(seed)
    audio = torch.randn(num_videos, num_segments, 5, generator=generator)
    visual = torch.randn(num_videos, num_segments, 2, 3, 6, generator=generator)
    video = torch.arange(num_videos) % 4
    labels = video[:, None].repeat(1, num_segments)
    if num_segments > 2:
        labels[:, 0] = labels[::2, -1] = 3
    return audio, visual, target_of(labels, video, form)


def step(model: nn.Module, audio: torch.Tensor, visual: torch.Tensor, target: Target) -> dict[str, torch.Tensor]:
    """Loss and gradients, all of which must be finite."""
    model.zero_grad()
    output = model(audio, visual)
    terms: dict[str, torch.Tensor] = model.loss(output.parts, target)  # type: ignore[operator]
    terms["total"].backward()
    assert all(term.isfinite() for term in terms.values()), terms
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    main = output.distance if isinstance(output, DistanceOutput) else output.probabilities()
    assert main.isfinite().all()
    return terms


# The oracles of the forward pass


def fusion_oracle(
    visual: Array,
    audio: Array,
    layer: Fusion,
    *,
    audio_axis: str = "position",
    input_map: bool = False,
    without: str = "nothing",
) -> tuple[Array, ...]:
    """Eq. 1-3: v_F, a_F and the map, where there is one."""
    if without in ("agva", "fusion"):
        attended, maps = visual.mean((1, 2)), ()
    elif visual.shape[1:3] == (1, 1):
        attended, maps = visual[:, 0, 0], ()
    else:
        guides = audio if len(audio) == len(visual) else np.array([audio.mean(0)] * len(visual))
        assert layer.attention is not None
        attended, *maps = agva_oracle(visual, guides, layer.attention, audio_axis)

    def stream(x: Array, layers: Any) -> Array:
        encoder, attention = layers
        if without in ("bilstm", "fusion"):
            x = linear(x, encoder[0])
        elif input_map:
            x = lstm_oracle(linear(x, encoder[0][0]), encoder[1])
        else:
            x = lstm_oracle(x, encoder)
        return x if without in ("self_attention", "fusion") else attention_oracle(x, attention)

    return stream(attended, layer.visual), stream(audio, layer.audio), *maps


def sbi_oracle(
    visual: Array,
    audio: Array,
    layer: Interaction,
    *,
    threshold: float = 0.05,
    tau_scale: str = "absolute",
) -> tuple[Array, Array]:
    """Eq. 4-10, the gate entry by entry."""
    v1, v2, a1, a2 = (
        linear(x, w)
        for x, w in (
            (visual, layer.visual_value),
            (visual, layer.visual_query),
            (audio, layer.audio_key),
            (audio, layer.audio_value),
        )
    )
    h = softmax(v2 @ a1.T / np.sqrt(visual.shape[1]))
    tau = threshold / len(audio) if tau_scale == "relative" else threshold
    g_v, g_a = np.zeros(h.shape), np.zeros(h.T.shape)
    for i, j in np.ndindex(h.shape):
        if h[i, j] > tau:
            g_v[i, j] = h[i, j] / sum(x for x in h[i] if x > tau)
            g_a[j, i] = h[i, j] / sum(x for x in h[:, j] if x > tau)
    return visual + g_v @ a2, audio + g_a @ v1


def integration_oracle(x: Array, layers: Any) -> Array:
    """Eq. 11 or 12."""
    attention, fc, _, norm = layers
    return layer_norm(linear(attention_oracle(x, attention), fc), norm)


def best(scores: Array, count: int) -> Array:
    """The mean of each column's largest values."""
    return np.array([np.mean(sorted(column, reverse=True)[:count]) for column in scores.T])


def fee_oracle(
    fused: Array,
    visual: Array,
    audio: Array,
    layer: ForegroundEnhancement,
    *,
    fee_gate: str = "log",
    fee_level: str = "video",
) -> Array:
    """Eq. 16 and 18-20."""
    z = linear(fused, layer.event)
    if fee_level == "video":
        z = z.max(0)
    v_e = sigmoid(best(linear(visual, layer.visual), 4))
    a_e = sigmoid(best(linear(audio, layer.audio), 4))
    return z * (v_e * a_e) if fee_gate == "product" else z + np.log(v_e) + np.log(a_e)


def weak_oracle(fused: Array, layer: WeakHead, *, weak_pool: str = "mean") -> tuple[Array, ...]:
    """Eq. 22-24."""
    p_w = linear(fused, layer.classifier)
    theta = sigmoid(np.maximum(linear(p_w, layer.weight), 0))  # (T, 1)
    return p_w, (p_w * theta).mean(0) if weak_pool == "mean" else (theta.T @ p_w)[0]


def branch_oracle(stream: Array, layer: ContrastiveBranch) -> Array:
    """Eq. 25 or 26."""
    x = attention_oracle(stream, layer.attention)
    fc, _, norm = layer.transform
    return linear(layer_norm(linear(x, fc), norm), layer.embedding)


def distance_between(visual: Array, audio: Array) -> Array:
    """Eq. 17, the diagonal; all pairs."""
    return np.array([[np.sqrt(((v - a) ** 2).sum() / len(v)) for a in audio] for v in visual])


def ccln_oracle(visual: Array, audio: Array, model: CCLN, task: str, **options: Any) -> dict[str, Array]:
    """Eq. 1-26 in the paper's order: the parts, and under ``main`` and ``map`` what comes out."""

    def chosen(*names: str) -> dict[str, Any]:
        return {name: options[name] for name in names if name in options}

    found: dict[str, Array] = {}
    without = options.get("without", "nothing")
    if task == "cml" and options.get("cml_visual") == "pooled":
        visual = visual.mean((1, 2), keepdims=True)
    v_f, a_f, *maps = fusion_oracle(visual, audio, model.fusion, **chosen("audio_axis", "input_map", "without"))
    if maps:
        found["map"] = maps[0]
    v_i, a_i = v_f, a_f
    if without != "sbi":
        assert model.interaction is not None
        v_i, a_i = sbi_oracle(v_f, a_f, model.interaction, **chosen("threshold", "tau_scale"))
    v_z, a_z = v_i, a_i
    if without != "integration":
        assert model.integration is not None
        v_z = integration_oracle(v_i, model.integration["visual"])
        a_z = integration_oracle(a_i, model.integration["audio"])
    branch = options.get("branch", "AV+V")
    for name, letter, stream in (("visual", "+V", v_f), ("audio", "+A", a_f)):
        if letter in branch:
            found[name] = branch_oracle(stream, model.branches[name])  # type: ignore[arg-type]
    if task == "cml":
        found["main"] = found["distance"] = distance_between(v_z, a_z)
        if branch != "AV":
            found["fused_visual"] = linear(v_z, model.fusion_embedding)
            found["fused_audio"] = linear(a_z, model.fusion_embedding)
        return found
    p_out = (v_z + a_z) / 2  # eq. 13
    if task == "full":
        found["main"] = found["logits"] = linear(p_out, model.classifier)  # eq. 14 and 21
    else:
        found["main"], found["logits"] = weak_oracle(p_out, model.weak_head, **chosen("weak_pool"))
    if branch != "AV":
        found["fusion"] = linear(p_out, model.fusion_embedding)  # eq. 15
    if without not in ("fee", "integration"):
        assert model.foreground is not None
        found["event"] = fee_oracle(p_out, v_i, a_i, model.foreground, **chosen("fee_gate", "fee_level"))
    return found


# Fusion stage


@pytest.mark.parametrize(
    "options",
    [{}, {"audio_axis": "hidden"}, {"input_map": True}, *({"without": part} for part in ABLATIONS[1:])],
    ids=str,
)
@pytest.mark.parametrize("num_audio", [4, 3])
def test_fusion_is_equations_1_to_3(options: dict[str, Any], num_audio: int) -> None:
    """With three audio segments to four visual ones, the mean of the three guides AGVA."""
    layer = exact(Fusion(6, 5, 6, CCLNOptions(width=8, heads=2, **options)))
    visual, audio = randn(1, 2, 4, 2, 3, 6), randn(2, 2, num_audio, 5)
    want = each(lambda v, a: fusion_oracle(v, a, layer, **options), visual, audio)
    got = [tensor for tensor in layer(visual, audio) if tensor is not None]
    for one, wanted in zip(got, want, strict=True):
        same(one, wanted)


# Interaction stage


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 999),
    st.integers(1, 5),
    st.integers(1, 5),
    st.sampled_from([0.0, 0.05, 0.3, 0.6, 0.95]),
    st.sampled_from(["absolute", "relative"]),
)
@pytest.mark.filterwarnings("ignore:.*audio segments")
def test_interaction_is_equations_4_to_10(
    seed: int, num_visual: int, num_audio: int, threshold: float, tau_scale: Any
) -> None:
    layer = exact(Interaction(4, threshold, dropout=0.2, tau_scale=tau_scale))
    visual, audio = 2 * randn(seed, 2, num_visual, 4), 2 * randn(seed + 1, 2, num_audio, 4)
    want = each(lambda v, a: sbi_oracle(v, a, layer, threshold=threshold, tau_scale=tau_scale), visual, audio)
    for got, wanted in zip(layer(visual, audio), want, strict=True):
        same(got, wanted)


def test_interaction_has_exactly_w1_to_w4() -> None:
    names = {f"{name}.weight" for name in ("visual_value", "visual_query", "audio_key", "audio_value")}
    layer = Interaction(4, 0.05)
    assert {name: tuple(p.shape) for name, p in layer.named_parameters()} == dict.fromkeys(names, (4, 4))


def by_hand(threshold: float, **options: Any) -> list[torch.Tensor]:
    """D = 1, one visual and two audio segments: scores 0 and ln 3, so H = 1/4, 3/4; W1 .. W4 = 10, 1, 1, 100."""
    layer = Interaction(1, threshold, **options).double()
    with torch.no_grad():
        for weight, value in zip(layer.parameters(), (10.0, 1.0, 1.0, 100.0), strict=True):
            weight.fill_(value)
    return list(layer(torch.ones(1, 1, 1).double(), torch.tensor([[[0.0], [np.log(3)]]]).double()))


def test_interaction_by_hand() -> None:
    """tau = 0.5 leaves the second audio segment alone."""
    with pytest.warns(UserWarning, match="2 audio segments"):
        mixed_visual, mixed_audio = by_hand(0.5)
    same(mixed_visual, [[[1 + 100 * np.log(3)]]])
    same(mixed_audio, [[[0.0], [np.log(3) + 10]]])  # the first audio segment lost everything and stays as it was


def test_interaction_by_hand_where_nothing_is_cut() -> None:
    """G_v = (1/4, 3/4), G_a = (1, 1)."""
    mixed_visual, mixed_audio = by_hand(0.05)
    same(mixed_visual, [[[1 + 75 * np.log(3)]]])
    same(mixed_audio, [[[10], [np.log(3) + 10]]])


def test_the_gate_of_a_half_precision_interaction_is_taken_in_float32() -> None:
    """Seven equal correlations of 1/7 pass tau = 0.1427. In bfloat16 each is 0.14258, and all would be cut."""
    layer = Interaction(1, 0.1427).bfloat16()
    with torch.no_grad():
        for weight, value in zip(layer.parameters(), (10.0, 1.0, 1.0, 100.0), strict=True):
            weight.fill_(value)
    visual, audio = layer(torch.ones(1, 1, 1).bfloat16(), torch.ones(1, 7, 1).bfloat16())
    assert visual.dtype == audio.dtype == torch.bfloat16
    assert visual.tolist() == [[[101.0]]] and audio.flatten().tolist() == [11.0] * 7


def test_a_relative_threshold_is_in_units_of_equal_correlations() -> None:
    """Two audio segments: 0.9 is 0.45, which cuts the quarter; 0.4 is 0.2, which does not."""
    cut, whole = by_hand(0.9, tau_scale="relative"), by_hand(0.4, tau_scale="relative")
    same(cut[0], [[[1 + 100 * np.log(3)]]])
    same(whole[0], [[[1 + 75 * np.log(3)]]])


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


@pytest.mark.parametrize(
    ("threshold", "options"),
    [(0.05, {}), (0.3, {}), (0.45, {}), (0.9, {"tau_scale": "relative"})],
)
@pytest.mark.filterwarnings("ignore:.*audio segments")
def test_interaction_gradients(threshold: float, options: dict[str, Any]) -> None:
    layer = exact(Interaction(3, threshold, **options))
    visual, audio = randn(3, 1, 3, 3).requires_grad_(), randn(4, 1, 4, 3).requires_grad_()
    assert gradcheck(lambda v, a, *_: layer(v, a), (visual, audio, *layer.parameters()))


def test_interaction_warns_where_equal_correlations_would_all_be_cut() -> None:
    layer = Interaction(4, 0.05)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer(torch.randn(1, 25, 4), torch.randn(1, 19, 4))
        Interaction(4, 0.99, tau_scale="relative")(torch.randn(1, 3, 4), torch.randn(1, 40, 4))
    with pytest.warns(UserWarning, match=r"20 audio segments.* up to 0\.05,.* below 0\.05, or tau_scale relative"):
        layer(torch.randn(1, 3, 4), torch.randn(1, 20, 4))


# Integration stage


def test_integration_is_equations_11_and_12() -> None:
    layers = exact(tiny()).integration
    visual, audio = randn(1, 2, 4, 8), randn(2, 2, 3, 8)
    for name, stream in (("visual", visual), ("audio", audio)):
        same(layers[name](stream), each(lambda x, layer=layers[name]: integration_oracle(x, layer), stream))


@pytest.mark.parametrize("num_segments", [1, 3, 4, 6])
@pytest.mark.parametrize("fee_gate", ["log", "product"])
@pytest.mark.parametrize("fee_level", ["video", "segment"])
def test_foreground_enhancement_is_equations_16_and_18_to_20(num_segments: int, fee_gate: Any, fee_level: Any) -> None:
    layer = exact(ForegroundEnhancement(8, 3, fee_gate, fee_level))
    streams = [randn(seed, 2, num_segments, 8) for seed in range(3)]
    z = layer(*streams)
    assert z.shape == ((2, 3) if fee_level == "video" else (2, num_segments, 3))
    same(z, each(lambda *one: fee_oracle(*one, layer, fee_gate=fee_gate, fee_level=fee_level), *streams))


@pytest.mark.parametrize("fee_gate", ["log", "product"])
@pytest.mark.parametrize("fee_level", ["video", "segment"])
def test_foreground_enhancement_gradients_through_the_loss(fee_gate: Any, fee_level: Any) -> None:
    layer = exact(ForegroundEnhancement(3, 2, fee_gate, fee_level, top_segments=2))
    streams = [randn(seed, 3, 3, 3).requires_grad_() for seed in range(3)]
    classes = torch.tensor([1, 2, 0]) if fee_level == "video" else torch.tensor([[1, 1, 2], [2, 2, 2], [0, 2, 1]])
    assert gradcheck(
        lambda *inputs: losses.foreground_enhancement(layer(*inputs[:3]), classes), (*streams, *layer.parameters())
    )


@pytest.mark.parametrize("num_visual", [4, 3])
def test_distances_are_equation_17_on_and_off_the_diagonal(num_visual: int) -> None:
    visual, audio = randn(1, 2, num_visual, 8), randn(2, 2, 4, 8)
    got = distances(visual, audio)
    same(got, each(distance_between, visual, audio))
    if num_visual == 4:  # eq. 17 as printed, its sum over the features and the division by sqrt(D) added
        printed = torch.clamp((visual - audio) ** 2, min=0).sum(-1).sqrt() / 8**0.5
        same(got.diagonal(dim1=1, dim2=2), printed.numpy())


def test_small_distances_of_large_vectors_are_exact() -> None:
    """|v|^2 - 2 v a + |a|^2 would lose them in float32: 1000^2 - 1000.001^2."""
    visual = torch.full((1, 30, 8), 1000.0)
    apart = torch.linspace(0.0625, 1.9375, 30)  # exact in float32 at 1000
    audio = visual + apart[None, :, None]
    want = (audio.double() - visual.double())[0, :, 0]
    assert torch.allclose(distances(visual, audio)[0, 0].double(), want, rtol=1e-5)


def test_distances_are_taken_in_float32_under_autocast_and_on_half_inputs() -> None:
    visual, audio = randn(1, 2, 3, 8).float(), randn(2, 2, 4, 8).float()
    with torch.autocast("cpu", torch.bfloat16):
        got = distances(visual, audio)
    assert got.dtype == torch.float32 and torch.equal(got, distances(visual, audio))
    halves = distances(visual.bfloat16(), audio.bfloat16())
    assert torch.equal(halves, distances(visual.bfloat16().float(), audio.bfloat16().float()))


@pytest.mark.parametrize("kind", ["logistic", "exponential", "contrastive"])
def test_distance_gradients(kind: str) -> None:
    visual, audio = randn(1, 2, 3, 2).requires_grad_(), randn(2, 2, 2, 2).requires_grad_()
    assert gradcheck(distances, (visual, audio))
    loss, together = getattr(losses, f"distance_{kind}"), randn(3, 2, 3, 2) > 0
    assert gradcheck(lambda v, a: loss(distances(v, a), together), (visual, audio))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["logistic", "exponential", "contrastive"])
@pytest.mark.parametrize("together", [True, False])
def test_the_gradient_at_distance_zero_is_zero(kind: str, together: bool, dtype: torch.dtype) -> None:
    point = randn(0, 1, 1, 4).to(dtype)
    visual, audio = point.clone().requires_grad_(), point.clone().requires_grad_()
    distance = distances(visual, audio)
    loss = getattr(losses, f"distance_{kind}")(distance, torch.tensor([[[together]]]))
    loss.backward()
    assert distance.item() == 0 and loss.isfinite()
    for stream in (visual, audio):
        assert stream.grad is not None and (stream.grad == 0).all()


# Weak head


@pytest.mark.parametrize("weak_pool", ["mean", "sum"])
@pytest.mark.parametrize("num_segments", [1, 2, 5])
def test_weak_head_is_equations_22_to_24(weak_pool: Any, num_segments: int) -> None:
    layer = exact(WeakHead(8, 3, weak_pool))
    fused = randn(0, 2, num_segments, 8)
    want = each(lambda one: weak_oracle(one, layer, weak_pool=weak_pool), fused)
    for got, wanted in zip(layer(fused), want, strict=True):
        same(got, wanted)


def test_weak_head_by_hand() -> None:
    """D = 1, C = 1: P_w = (x, -x); what W_b makes of it is x. Theta is sigmoid(ln 3) = 3/4 of x = ln 3, 1/2 of -1."""
    layer = WeakHead(1, 1, "mean").double()
    with torch.no_grad():
        for parameter, value in zip(layer.parameters(), ([[1.0], [-1.0]], [0.0, 0.0], [[0.5, -0.5]], 0.0), strict=True):
            parameter.copy_(torch.tensor(value))
    segments, video = layer(torch.tensor([[[np.log(3)], [-1.0]]]))
    same(segments, [[[np.log(3), -np.log(3)], [-1, 1]]])
    same(video, [[(0.75 * np.log(3) - 0.5) / 2, (-0.75 * np.log(3) + 0.5) / 2]])


@pytest.mark.parametrize("weak_pool", ["mean", "sum"])
def test_weak_head_gradients(weak_pool: Any) -> None:
    layer, fused = exact(WeakHead(3, 2, weak_pool)), randn(0, 2, 3, 3).requires_grad_()
    scores = layer.weight(layer.classifier(fused))
    assert (scores > 0).any() and (scores < 0).any()  # on both sides of the ReLU
    assert gradcheck(lambda x, *_: layer(x), (fused, *layer.parameters()))


# Contrastive branch


def test_contrastive_branch_is_equations_25_and_26_and_no_constant() -> None:
    layer = exact(ContrastiveBranch(8, 2, 0.2))
    stream = randn(0, 2, 5, 8)
    same(layer(stream), each(lambda one: branch_oracle(one, layer), stream))
    assert layer(stream).std() > 1e-3  # LayerNorm over a width of 1, as printed, would give its bias everywhere


# The whole


@every_task
def test_ccln_is_its_parts_in_the_order_of_the_paper(task: str) -> None:
    model = drawn(task)
    audio, visual = randn(1, 3, 5, 5), randn(2, 3, 5, 2, 3, 6)
    same_output(
        model(audio, visual),
        each(lambda v, a: ccln_oracle(v, a, model, task), visual, audio),
    )


def same_output(output: SegmentOutput | DistanceOutput, want: dict[str, Array]) -> None:
    same(output.distance if isinstance(output, DistanceOutput) else output.logits, want["main"])
    assert (output.attention is None) == ("map" not in want)
    if output.attention is not None:
        same(output.attention, want["map"])
    assert set(output.parts) == set(want) - {"main", "map"}
    for name, part in output.parts.items():
        same(part, want[name])


@pytest.mark.parametrize(("task", "options"), OPTIONS, ids=str)
def test_every_option_is_its_oracle(task: str, options: dict[str, Any]) -> None:
    model = drawn(task, **options)
    audio, visual = randn(1, 2, 5, 5), randn(2, 2, 5, 2, 3, 6)
    output = model(audio, visual)
    same_output(output, each(lambda v, a: ccln_oracle(v, a, model, task, **options), visual, audio))
    plain = drawn(task)
    shapes = [{name: p.shape for name, p in m.named_parameters()} for m in (model, plain)]
    if shapes[0] == shapes[1] and options not in ({"without": "nothing"}, {"branch": "AV+V"}):
        other = plain(audio, visual)  # of the same parameters: the option makes the difference
        assert any(one.shape != b.shape or not torch.allclose(one, b) for one, b in zip_parts(output, other))


def zip_parts(*outputs: Any) -> list[tuple[torch.Tensor, ...]]:
    assert len({frozenset(output.parts) for output in outputs}) == 1
    return [tuple(output.parts[name] for output in outputs) for name in outputs[0].parts]


@pytest.mark.parametrize("direction", ["a2v", "v2a"])
@pytest.mark.parametrize("options", [{}, {"branch": "AV+V+A"}, {"cml_visual": "pooled"}, {"without": "agva"}], ids=str)
def test_a_query_of_a_few_segments_is_the_oracle_too(options: dict[str, Any], direction: str) -> None:
    model = drawn("cml", **options)
    num_audio, num_visual = (2, 5) if direction == "a2v" else (5, 2)
    audio, visual = randn(1, 2, num_audio, 5), randn(2, 2, num_visual, 2, 3, 6)
    want = each(lambda v, a: ccln_oracle(v, a, model, "cml", **options), visual, audio)
    same_output(model(audio, visual), want)
    assert want["main"].shape == (2, num_visual, num_audio)


def test_pooled_vision_is_the_model_on_pooled_input() -> None:
    model, small = tiny("cml", cml_visual="pooled").eval(), tiny("cml", grid=(1, 1)).eval()
    small.load_state_dict(model.state_dict())
    audio, visual, _ = batch()
    pooled = visual.mean((2, 3), keepdim=True)
    assert torch.equal(model(audio, visual).distance, small(audio, pooled).distance)
    assert not any(name.startswith("fusion.attention") for name in model.state_dict())
    assert model(audio, visual).attention is None


def test_the_mean_of_the_two_embeddings_is_that_of_the_fusion() -> None:
    """W6 is linear: what cml contrasts in two halves is P_f = W6 (v_Z + a_Z) / 2, eq. 13 and 15."""
    cml, full = drawn("cml"), drawn("full")
    full.load_state_dict({**full.state_dict(), **cml.state_dict()})
    audio, visual = randn(1, 2, 5, 5), randn(2, 2, 5, 2, 3, 6)
    parts = cml(audio, visual).parts
    same((parts["fused_visual"] + parts["fused_audio"]) / 2, full(audio, visual).parts["fusion"].detach().numpy())


# The losses


def anchors_oracle(parts: dict[str, Array], target: Target) -> list[Array]:
    """What is contrasted: views of (B, numbers), fusion first."""
    labels = target.labels.numpy()
    names = [name for name in ("fusion", "fused_visual", "fused_audio", "visual", "audio") if name in parts]
    length = min(parts[name].shape[1] for name in names)

    def cut(rows: Array, video: int) -> Array:
        """Of a stream that is searched in, the segments of the event."""
        return rows if len(rows) == length else rows[labels[video] < 3]

    streams = {name: np.stack([cut(parts[name][video], video) for video in range(len(labels))]) for name in names}
    if "fusion" not in streams:
        streams["fusion"] = (streams.pop("fused_visual") + streams.pop("fused_audio")) / 2
    return [view.reshape(len(view), -1) for view in (streams.pop("fusion"), *streams.values())]


def wccl_term(
    parts: dict[str, Array], target: Target, *, wccl_reduction: str = "mean", temperature: float = 0.1
) -> float:
    """Eq. 30, 34 or 37."""
    fusion, *branches = anchors_oracle(parts, target)
    values = []
    for branch in branches:
        costs = contrastive_oracle([*fusion.tolist(), *branch.tolist()], target.video.tolist() * 2, temperature)
        values.append(sum(costs) if wccl_reduction == "sum" else sum(costs) / len(costs))
    return sum(values) / len(values)


def classification_term(
    logits: Array,
    targets: Array,
    *,
    classification: str = "cross_entropy",
    focal_alpha: float = 0.25,
    focal_gamma: float = 2.0,
) -> float:
    """Eq. 28 or 32; logits and targets (N, C+1), one row a segment or a video."""
    costs = []
    for z, y in zip(logits.tolist(), targets.tolist(), strict=True):
        if classification == "sigmoid_focal":
            costs.append(sum(focal_oracle(*pair, focal_alpha, focal_gamma) for pair in zip(z, y, strict=True)))
        else:
            costs.append(softmax_focal_oracle(z, y, focal_gamma if classification == "softmax_focal" else 0))
    return sum(costs) / len(costs)


def fee_term(z: Array, target: Target) -> float:
    """Eq. 29 or 33."""
    classes = target.video if z.ndim == 2 else target.labels
    rows = zip(z.reshape(-1, z.shape[-1]).tolist(), classes.flatten().tolist(), strict=True)
    costs = [-log_softmax_oracle(row, c) for row, c in rows if c != 3]
    return sum(costs) / len(costs)


def distance_term(
    distance: Array, target: Target, *, cml_loss: str = "logistic", cml_pairs: str = "synchronous"
) -> float:
    """Eq. 36. Of unequal streams the shorter is a query, all event, and every pair of it is trained."""
    costs = []
    for matrix, labels in zip(distance, target.labels.tolist(), strict=True):
        num_visual, num_audio = matrix.shape
        event = [c < 3 for c in labels]
        rows = event if num_visual == len(event) else [True] * num_visual
        columns = event if num_audio == len(event) else [True] * num_audio
        for i, j in np.ndindex(matrix.shape):
            if i == j or cml_pairs == "all" or num_visual != num_audio:
                costs.append(distance_oracle(cml_loss, float(matrix[i, j]), rows[i] and columns[j]))
    return sum(costs) / len(costs)


def loss_oracle(parts: dict[str, Array], target: Target, task: str, **options: Any) -> dict[str, float]:
    """Eq. 31, 35 or 38, term by term."""

    def chosen(*names: str) -> dict[str, Any]:
        return {name: options[name] for name in names if name in options}

    terms: dict[str, float] = {}
    if task == "cml":
        terms["distance"] = distance_term(parts["distance"], target, **chosen("cml_loss", "cml_pairs"))
    else:
        one_hot = np.eye(4)[target.labels.numpy()].reshape(-1, 4)
        targets = one_hot if task == "full" else target.video_labels.double().numpy()
        settings = chosen("classification", "focal_alpha", "focal_gamma")
        terms["classification"] = classification_term(parts["logits"].reshape(-1, 4), targets, **settings)
        terms["fee"] = options.get("fee_weight", 150 / 128) * fee_term(parts["event"], target)
    if options.get("branch") != "AV":
        settings = chosen("wccl_reduction", "temperature")
        terms["wccl"] = options.get("wccl_weight", 25 / 128) * wccl_term(parts, target, **settings)
    return {**terms, "total": sum(terms.values())}


@functools.cache
def default_loss(task: str, form: str = "onehot") -> float:
    return check_loss(task, {}, form)["total"]


def check_loss(task: str, options: dict[str, Any], form: str = "onehot") -> dict[str, float]:
    """The loss on random features and parameters is the oracle's, term by term; returns it."""
    model = drawn(task, **options)
    audio, visual, target = batch(6, form=form)
    parts = model(audio, visual).parts
    got = {name: term.item() for name, term in model.loss(parts, target).items()}
    want = loss_oracle({name: part.detach().numpy() for name, part in parts.items()}, target, task, **options)
    assert got == pytest.approx(want, rel=1e-9)
    assert list(got) == list(want)
    return got


CLASSIFICATION: list[dict[str, Any]] = [
    {"classification": "softmax_focal"},
    {"classification": "softmax_focal", "focal_gamma": 0.5},
    {"classification": "sigmoid_focal"},
    {"classification": "sigmoid_focal", "focal_alpha": 0.6, "focal_gamma": 1.0},
]
CONTRAST: list[dict[str, Any]] = [
    {"branch": "AV+A"},
    {"branch": "AV+V+A"},
    {"wccl_reduction": "sum"},
    {"temperature": 0.5},
    {"wccl_weight": 3.0},
]
FULL_LOSSES = [
    *CLASSIFICATION,
    *CONTRAST,
    {"branch": "AV"},
    {"fee_gate": "product"},
    {"fee_level": "segment"},
    {"fee_weight": 2.0},
]
WEAK_LOSSES = [
    *CLASSIFICATION,
    *CONTRAST,
    {"branch": "AV"},
    {"fee_gate": "product"},
    {"fee_weight": 2.0},
    {"weak_pool": "sum"},
]
CML_LOSSES = [
    *CONTRAST,
    {"branch": "AV"},
    *({"cml_loss": kind} for kind in ("exponential", "contrastive")),
    *({"cml_loss": kind, "cml_pairs": "all"} for kind in ("logistic", "exponential", "contrastive")),
]


@pytest.mark.parametrize("options", FULL_LOSSES, ids=str)
def test_full_loss_is_equations_28_to_31(options: dict[str, Any]) -> None:
    assert check_loss("full", options)["total"] != pytest.approx(default_loss("full"), rel=1e-6)


@pytest.mark.parametrize("form", ["onehot", "proportion"])
@pytest.mark.parametrize("options", WEAK_LOSSES, ids=str)
def test_weak_loss_is_equations_32_to_35(options: dict[str, Any], form: str) -> None:
    assert check_loss("weak", options, form)["total"] != pytest.approx(default_loss("weak", form), rel=1e-6)


def test_the_two_forms_of_weak_labels_differ_in_the_classification_alone() -> None:
    onehot, proportion = check_loss("weak", {}), check_loss("weak", {}, "proportion")
    assert onehot["classification"] != pytest.approx(proportion["classification"], rel=1e-3)
    assert (onehot["fee"], onehot["wccl"]) == (proportion["fee"], proportion["wccl"])


def test_the_weak_loss_knows_nothing_of_segments() -> None:
    model, (audio, visual, target) = tiny("weak").eval(), batch()
    parts = model(audio, visual).parts
    other = Target((target.labels + 1) % 4, target.video, target.video_labels)
    assert model.loss(parts, target) == model.loss(parts, other)


@pytest.mark.parametrize("options", CML_LOSSES, ids=str)
def test_cml_loss_is_equations_36_to_38(options: dict[str, Any]) -> None:
    assert check_loss("cml", options)["total"] != pytest.approx(default_loss("cml"), rel=1e-6)


@pytest.mark.parametrize("direction", ["a2v", "v2a"])
@pytest.mark.parametrize("cml_loss", ["logistic", "exponential", "contrastive"])
def test_cml_loss_of_a_query_is_equations_36_to_38(direction: Any, cml_loss: str) -> None:
    """The whole l x T is trained, whatever ``cml_pairs``; contrasted are the event's segments of both streams."""
    options = {"cml_loss": cml_loss, "branch": "AV+V+A"}
    model, asked = drawn("cml", **options), query(placed(1, direction), 3, direction)
    parts = model(asked.audio, asked.visual).parts
    got = {name: term.item() for name, term in model.loss(parts, asked.target).items()}
    arrays = {name: part.detach().numpy() for name, part in parts.items()}
    assert got == pytest.approx(loss_oracle(arrays, asked.target, "cml", **options), rel=1e-9)


@every_task
def test_the_contrastive_loss_is_equation_27(task: str) -> None:
    """In every task, between the flattened fusion and visual embeddings of the videos, classes C for none included."""
    model, (audio, visual, target) = drawn(task), batch(6)
    parts = model(audio, visual).parts
    fusion = parts["fusion"] if "fusion" in parts else (parts["fused_visual"] + parts["fused_audio"]) / 2
    rows = torch.cat([fusion, parts["visual"]]).flatten(1).tolist()
    assert len(rows) == 12 and len(rows[0]) == 5
    want = contrastive_oracle(rows, [0, 1, 2, 3, 0, 1] * 2, 0.1)
    assert model.loss(parts, target)["wccl"].item() == pytest.approx(25 / 128 * sum(want) / 12)


def test_two_branches_are_the_mean_of_two_losses() -> None:
    model, (audio, visual, target) = drawn(branch="AV+V+A", wccl_weight=1.0), batch(6)
    parts = model(audio, visual).parts
    flat = {name: parts[name].flatten(1) for name in ("fusion", "visual", "audio")}
    two = [losses.wccl(flat["fusion"], flat[name], target.video, temperature=0.1) for name in ("visual", "audio")]
    same(model.loss(parts, target)["wccl"], (two[0].item() + two[1].item()) / 2)


def test_loss_is_equation_31_with_the_start_weights() -> None:
    model, (audio, visual, target) = tiny().eval(), batch()
    parts = model(audio, visual).parts
    terms = model.loss(parts, target)
    contrast = losses.wccl(parts["fusion"].flatten(1), parts["visual"].flatten(1), target.video, temperature=0.1)
    assert list(terms) == ["classification", "fee", "wccl", "total"]
    assert terms["classification"] == losses.cross_entropy(parts["logits"], torch.eye(4)[target.labels])
    assert terms["fee"] == 150 / 128 * losses.foreground_enhancement(parts["event"], target.video)
    assert terms["wccl"] == 25 / 128 * contrast
    assert terms["total"].item() == pytest.approx(sum(terms[name].item() for name in list(terms)[:3]))


@pytest.mark.parametrize("classification", ["cross_entropy", "softmax_focal", "sigmoid_focal"])
@pytest.mark.parametrize("task", ["full", "weak"])
def test_probabilities_are_those_the_logits_were_trained_as(task: str, classification: str) -> None:
    output = tiny(task, classification=classification).eval()(*batch()[:2])
    z = output.logits.detach().double().numpy()
    want = sigmoid(z) / sigmoid(z).sum(-1, keepdims=True) if classification == "sigmoid_focal" else softmax(z)
    np.testing.assert_allclose(output.probabilities().detach().numpy(), want, rtol=1e-5)
    assert output.multilabel == (classification == "sigmoid_focal")


# Cross-modality localization with a query


def placed(start: int, direction: str, length: int = 2, num_segments: int = 6) -> Batch:
    """Two videos whose streams that are asked with hold the same event, from ``start`` and from one second later.

    All around it is drawn anew for every ``start``; the streams that are searched in stay as they are.
    """
    event = {"a2v": randn(0, 2, length, 5), "v2a": randn(0, 2, length, 2, 3, 6)}[direction]
    streams = {"a2v": randn(7, 2, num_segments, 2, 3, 6), "v2a": randn(7, 2, num_segments, 5)}
    asking = randn(10 + start, 2, num_segments, *event.shape[2:])
    labels = torch.full((2, num_segments), 3)
    for video in range(2):
        stretch = slice(start + video, start + video + length)
        asking[video, stretch], labels[video, stretch] = event[video], video
    target = target_of(labels, torch.arange(2))
    audio, visual = (asking, streams["a2v"]) if direction == "a2v" else (streams["v2a"], asking)
    return Batch(audio, visual, target, torch.ones_like(labels, dtype=torch.bool))


@pytest.mark.parametrize("direction", ["a2v", "v2a"])
def test_distances_to_a_query_do_not_tell_where_it_stood(direction: Any) -> None:
    """Shifting the event in the stream that is asked with changes nothing in strict mode, but much in joint mode."""
    model = drawn("cml")
    strict, joint = [], []
    for start in (0, 1, 3):
        whole = placed(start, direction)
        asked = query(whole, 3, direction)
        strict.append(model(asked.audio, asked.visual).distance)
        everywhere = model(whole.audio, whole.visual).distance
        searched = everywhere if direction == "a2v" else everywhere.mT
        joint.append(torch.stack([searched[v, :, start + v : start + v + 2] for v in range(2)]))
    assert strict[0].shape == ((2, 6, 2) if direction == "a2v" else (2, 2, 6))
    for one, other in zip(strict[1:], joint[1:], strict=True):
        assert torch.equal(one, strict[0])
        assert ((other - joint[0]).abs().amax((1, 2)) > 1e-3).all()


@pytest.mark.parametrize("num_audio", [2, 6])
def test_agva_is_guided_by_the_mean_of_audio_that_is_not_synchronous(num_audio: int) -> None:
    """Their order leaves the map as it is, until they are as many as the pictures."""
    model = drawn("cml")
    audio, visual = randn(1, 2, num_audio, 5), randn(2, 2, 6 if num_audio == 2 else 2, 2, 3, 6)
    output, turned = model(audio, visual), model(audio.flip(1), visual)
    same(turned.attention, output.attention.detach().numpy())
    assert not torch.allclose(turned.distance, output.distance.flip(2))  # the Bi-LSTM does know the order
    synchronous = randn(2, 2, num_audio, 2, 3, 6)
    assert not torch.allclose(model(audio, synchronous).attention, model(audio.flip(1), synchronous).attention)


@pytest.mark.parametrize(("num_audio", "num_visual"), [(2, 5), (5, 2), (1, 5), (5, 1)])
def test_streams_of_two_lengths_are_for_cml_alone(num_audio: int, num_visual: int) -> None:
    audio, visual = torch.randn(2, num_audio, 5), torch.randn(2, num_visual, 2, 3, 6)
    output = tiny("cml", branch="AV+V+A")(audio, visual)
    assert output.distance.shape == (2, num_visual, num_audio) and output.attention.shape == (2, num_visual, 2, 3)
    lengths = {"fused_visual": num_visual, "visual": num_visual, "fused_audio": num_audio, "audio": num_audio}
    assert {name: part.shape[1] for name, part in output.parts.items() if name != "distance"} == lengths
    for task in ("full", "weak"):
        with pytest.raises(AvelError, match=rf"audio of shape \(2, {num_audio}, 5\)(?s:.*)the same B and T"):
            tiny(task)(audio, visual)


# Ablations and branches


GONE = {
    "nothing": (),
    "agva": ("fusion.attention.",),
    "bilstm": ("fusion.visual.0.", "fusion.audio.0."),
    "self_attention": ("fusion.visual.1.", "fusion.audio.1."),
    "fusion": ("fusion.",),
    "sbi": ("interaction.",),
    "fee": ("foreground.",),
    "integration": ("integration.", "foreground."),
}


@pytest.mark.parametrize(("task", "without"), WITHOUT)
def test_an_ablation_takes_its_part_away_and_nothing_else(task: str, without: str) -> None:
    whole = {name: tuple(p.shape) for name, p in tiny(task).named_parameters()}
    names = {name: tuple(p.shape) for name, p in tiny(task, without=without).named_parameters()}
    gone = {name for name in whole if name.startswith(GONE[without] or "-")}
    assert bool(gone) == (without != "nothing")
    added = {}
    if without in ("bilstm", "fusion"):  # a linear map to D instead
        for stream, dim in (("visual", 6), ("audio", 5)):
            added |= {f"fusion.{stream}.0.0.weight": (8, dim), f"fusion.{stream}.0.0.bias": (8,)}
    assert names == {name: shape for name, shape in whole.items() if name not in gone} | added


@pytest.mark.parametrize("branch", BRANCHES)
@every_task
def test_a_branch_mode_has_its_branches_and_w6_alone(task: str, branch: str) -> None:
    model, (audio, visual, target) = tiny(task, branch=branch), batch()
    names = {name for name, _ in model.named_parameters()}
    streams = {name for name, letter in (("visual", "+V"), ("audio", "+A")) if letter in branch}
    assert {name.split(".")[1] for name in names if name.startswith("branches.")} == streams
    assert ("fusion_embedding.weight" in names) == bool(streams)
    others = {name for name in names if not name.startswith(("branches.", "fusion_embedding."))}
    assert others == {name for name, _ in tiny(task, branch="AV").named_parameters()}
    parts = model(audio, visual).parts
    fusions = {"fused_visual", "fused_audio"} if task == "cml" else {"fusion"}
    heads = {"full": {"logits", "event"}, "weak": {"logits", "event"}, "cml": {"distance"}}[task]
    assert set(parts) == heads | ((streams | fusions) if streams else set())
    assert ("wccl" in model.loss(parts, target)) == bool(streams)


@every_task
def test_a_head_exists_only_where_the_loss_reads_it(task: str) -> None:
    heads = {name.split(".")[0] for name, _ in tiny(task).named_parameters()}
    backbone = {"fusion", "interaction", "integration", "branches", "fusion_embedding"}
    special = {"full": {"classifier", "foreground"}, "weak": {"weak_head", "foreground"}, "cml": set()}
    assert heads == backbone | special[task]


def parameter_count(task: str, without: str, branch: str) -> int:
    """Parameters of CCLN at its default width on the features of AVE: 7 x 7 x 512 and 128, 28 classes."""
    with torch.device("meta"):
        model = build_model(
            "ccln",
            audio_dim=128,
            visual_dim=512,
            grid=(7, 7),
            num_classes=28,
            task=task,
            without=without,
            branch=branch,
        )
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("task", "without", "counts"),  # of AV, AV+V, AV+A, AV+V+A
    [
        ("full", "nothing", (2_779_042, 3_109_540, 3_109_540, 3_439_781)),
        ("full", "fusion", (1_115_505, 1_446_003, 1_446_003, 1_776_244)),
        ("full", "agva", (2_400_113, 2_730_611, 2_730_611, 3_060_852)),
        ("full", "bilstm", (2_021_794, 2_352_292, 2_352_292, 2_682_533)),
        ("full", "self_attention", (2_251_682, 2_582_180, 2_582_180, 2_912_421)),
        ("full", "sbi", (2_516_898, 2_847_396, 2_847_396, 3_177_637)),
        ("full", "fee", (2_757_454, 3_087_952, 3_087_952, 3_418_193)),
        ("full", "integration", (2_097_486, 2_427_984, 2_427_984, 2_758_225)),
        ("weak", "nothing", (2_779_072, 3_109_570, 3_109_570, 3_439_811)),
        ("weak", "fusion", (1_115_535, 1_446_033, 1_446_033, 1_776_274)),
        ("weak", "agva", (2_400_143, 2_730_641, 2_730_641, 3_060_882)),
        ("weak", "bilstm", (2_021_824, 2_352_322, 2_352_322, 2_682_563)),
        ("weak", "self_attention", (2_251_712, 2_582_210, 2_582_210, 2_912_451)),
        ("weak", "sbi", (2_516_928, 2_847_426, 2_847_426, 3_177_667)),
        ("weak", "fee", (2_757_484, 3_087_982, 3_087_982, 3_418_223)),
        ("weak", "integration", (2_097_516, 2_428_014, 2_428_014, 2_758_255)),
        ("cml", "nothing", (2_750_001, 3_080_499, 3_080_499, 3_410_740)),
        ("cml", "fusion", (1_086_464, 1_416_962, 1_416_962, 1_747_203)),
        ("cml", "agva", (2_371_072, 2_701_570, 2_701_570, 3_031_811)),
        ("cml", "bilstm", (1_992_753, 2_323_251, 2_323_251, 2_653_492)),
        ("cml", "self_attention", (2_222_641, 2_553_139, 2_553_139, 2_883_380)),
        ("cml", "sbi", (2_487_857, 2_818_355, 2_818_355, 3_148_596)),
    ],
)
def test_numbers_of_parameters(task: str, without: str, counts: Sequence[int]) -> None:
    assert [parameter_count(task, without, branch) for branch in BRANCHES] == list(counts)


@pytest.mark.parametrize("branch", BRANCHES)
@pytest.mark.parametrize(("task", "without"), WITHOUT)
def test_every_ablation_of_every_branch_mode_trains(task: str, without: str, branch: str) -> None:
    model, (audio, visual, target) = tiny(task, without=without, branch=branch), batch()
    terms = step(model, audio, visual, target)
    names = ["distance"] if task == "cml" else ["classification", "fee"]
    if without in ("fee", "integration"):
        names.remove("fee")
    assert list(terms) == [*names, *(["wccl"] if branch != "AV" else []), "total"]
    model.eval()
    order = torch.tensor([2, 0, 3, 1])
    output, permuted = model(audio, visual), model(audio[order], visual[order])
    for one, other in zip_parts(output, permuted):
        assert torch.allclose(one[order], other, atol=1e-5)


@pytest.mark.parametrize(("task", "options"), OPTIONS, ids=str)
def test_every_option_trains_in_its_task(task: str, options: dict[str, Any]) -> None:
    step(tiny(task, **options), *batch())


def test_the_options_above_are_all_there_are() -> None:
    compared = [options for _, options in OPTIONS] + FULL_LOSSES + WEAK_LOSSES + CML_LOSSES
    known = {field.name for field in dataclasses.fields(CCLNOptions)}
    assert {name for options in compared for name in options} == known - {"dropout"}


@every_task
def test_the_defaults_are_those_of_the_specification(task: str) -> None:
    model = build_model("ccln", audio_dim=128, visual_dim=512, grid=(7, 7), num_classes=28, task=task)
    assert isinstance(model, CCLN)
    dropouts = [module.rate for module in model.modules() if isinstance(module, Dropout)]
    assert set(dropouts) == {0.2}
    assert {module.heads for module in model.modules() if isinstance(module, SelfAttention)} == {4}
    assert all(isinstance(stream[0], BiLSTM) for stream in (model.fusion.visual, model.fusion.audio))
    assert model.interaction is not None and model.interaction.visual_value.in_features == 256
    assert list(model.branches) == ["visual"]
    assert len({id(p) for p in model.parameters()}) == len(list(model.parameters()))  # nothing is shared
    assert dataclasses.asdict(CCLNOptions()) == {
        "width": 256,
        "heads": 4,
        "dropout": 0.2,
        "without": "nothing",
        "input_map": False,
        "audio_axis": "position",
        "cml_visual": "grid",
        "threshold": 0.05,
        "tau_scale": "absolute",
        "fee_gate": "log",
        "fee_level": "video",
        "classification": "cross_entropy",
        "focal_alpha": 0.25,
        "focal_gamma": 2.0,
        "weak_pool": "mean",
        "branch": "AV+V",
        "temperature": 0.1,
        "wccl_reduction": "mean",
        "cml_loss": "logistic",
        "cml_pairs": "synchronous",
        "fee_weight": 150 / 128,
        "wccl_weight": 25 / 128,
    }


# Odd inputs


@pytest.mark.parametrize(("num_videos", "num_segments"), [(1, 1), (1, 5), (4, 1), (3, 2), (2, 19)])
@every_task
def test_every_small_shape_is_finite(task: str, num_videos: int, num_segments: int) -> None:
    step(tiny(task), *batch(num_videos, num_segments))


@pytest.mark.filterwarnings("ignore:.*audio segments")
@every_task
def test_long_windows_whose_correlations_are_all_cut_are_finite(task: str) -> None:
    model = tiny(task)
    assert model.interaction is not None
    nn.init.zeros_(model.interaction.visual_query.weight)
    step(model, *batch(2, 40))


@pytest.mark.parametrize("stream", ["audio", "visual", "both"])
@every_task
def test_a_zeroed_stream_is_finite(task: str, stream: str) -> None:
    audio, visual, target = batch()
    step(tiny(task), audio * (stream == "visual"), visual * (stream == "audio"), target)


@pytest.mark.parametrize("task", ["full", "weak"])
def test_a_batch_without_events_has_no_fee_loss_and_finite_gradients(task: str) -> None:
    audio, visual, target = batch()
    terms = step(tiny(task), audio, visual, target_of(torch.full_like(target.labels, 3), torch.full((4,), 3)))
    assert terms["fee"] == 0


@pytest.mark.parametrize("event", [0, 3])
def test_cml_where_all_or_nothing_is_event_is_finite(event: int) -> None:
    audio, visual, target = batch()
    labels = torch.full_like(target.labels, event)
    step(tiny("cml"), audio, visual, target_of(labels, torch.full((4,), event)))


@every_task
def test_one_class_and_one_cell(task: str) -> None:
    audio, visual, _ = batch()
    model = tiny(task, grid=(1, 1), num_classes=1)
    labels = torch.tensor([[0, 1, 1, 0, 1]] * 4)
    target = target_of(labels, torch.zeros(4, dtype=torch.long), num_classes=1)
    step(model, audio, visual[:, :, :1, :1], target)
    assert model(audio, visual[:, :, :1, :1]).attention is None


@every_task
def test_mixed_precision_is_finite_and_its_losses_are_float32(task: str) -> None:
    audio, visual, target = batch()
    model = tiny(task).eval()
    want = model.loss(model(audio, visual).parts, target)
    with torch.autocast("cpu", torch.bfloat16):
        terms = step(model, audio, visual, target)
    assert {term.dtype for term in terms.values()} == {torch.float32}
    assert terms["total"].item() == pytest.approx(want["total"].item(), rel=0.1)


def test_every_linear_map_but_the_last_ones_is_followed_by_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    """With masks that drop everything, what is left are residuals and norms, and what the last maps make of them."""
    monkeypatch.setattr(
        "avel.models.layers._cheap_mask", lambda shape, rate: (torch.ones(shape, dtype=torch.bool), 1.0)
    )
    torch.manual_seed(0)
    visual, audio = torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    for got, want in zip(Interaction(8, 0.05, dropout=0.2)(visual, audio), (visual, audio), strict=True):
        assert torch.equal(got, want)
    attention = SelfAttention(8, 2, dropout=0.2)
    assert torch.equal(attention(visual), attention.norm(visual))
    agva = AudioGuidedAttention(6, 5, 6, dropout=0.2)
    assert torch.allclose(agva(torch.randn(1, 2, 2, 3, 6), torch.randn(1, 2, 5))[1], torch.tensor(1 / 6))
    for layers in tiny().integration.values():  # the norm of nothing is its bias, 0
        assert (layers(visual) == 0).all()
    branch = ContrastiveBranch(8, 2, 0.2)
    assert torch.equal(branch(visual), branch.embedding.bias.expand(2, 5, 1))
    for options in ({"input_map": True}, {"without": "bilstm"}):
        stream = Fusion(6, 5, 1, CCLNOptions(width=8, heads=2, **options)).visual[0]  # type: ignore[arg-type]
        mapped = stream[0] if "input_map" in options else stream
        assert torch.equal(mapped(torch.randn(2, 5, 6)), torch.zeros(2, 5, 8))
    for head in (ForegroundEnhancement(8, 3), WeakHead(8, 3, "mean")):
        assert not any(isinstance(module, Dropout) for module in head.modules())


def test_each_map_of_agva_but_the_score_has_its_own_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, ...]] = []

    def mask(shape: torch.Size, rate: float) -> tuple[torch.Tensor, float]:
        shapes.append(tuple(shape))
        return torch.zeros(shape, dtype=torch.bool), 1.0

    monkeypatch.setattr("avel.models.layers._cheap_mask", mask)
    AudioGuidedAttention(7, 5, 6, dropout=0.2)(torch.randn(2, 4, 2, 3, 7), torch.randn(2, 4, 5))
    # Of two streams, first at width 7, then over 6 hidden units of 6 cells, and over 6 positions.
    assert sorted(math.prod(shape) for shape in shapes) == sorted([2 * 4 * 6 * 7, 2 * 4 * 7, 2 * 4 * 6 * 6, 2 * 4 * 6])


def test_both_maps_of_self_attention_have_their_own_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without queries, keys and values nothing is attended to, and the output map gives its bias."""
    monkeypatch.setattr(
        "avel.models.layers._cheap_mask",
        lambda shape, rate: (torch.full(shape, shape[-1] == 3 * 8), 1.0),
    )
    layer = exact(SelfAttention(8, 2, dropout=0.2)).train()
    features = randn(0, 2, 5, 8)
    same(layer(features), layer.norm(features + layer.output.bias).detach().numpy())


def test_the_dropout_option_is_all_that_differs_between_two_passes_of_training() -> None:
    for task in TASKS:
        audio, visual, _ = batch()
        for rate, different in ((0.0, False), (0.3, True)):
            model = tiny(task, dropout=rate).train()
            one, other = model(audio, visual).parts, model(audio, visual).parts
            assert {not torch.equal(one[name], other[name]) for name in one} == {different}


# Parts in other models


class Other(nn.Module):
    """A linear map to each stream and a classifier, with SBI and FEE dropped in."""

    def __init__(self) -> None:
        super().__init__()
        self.visual, self.audio = nn.Linear(6, 8), nn.Linear(5, 8)
        self.interaction = Interaction(8, 0.05)
        self.foreground = ForegroundEnhancement(8, 3, top_segments=2)
        self.classifier = nn.Linear(8, 4)

    def forward(self, audio: torch.Tensor, visual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        v, a = self.interaction(self.visual(visual.mean((2, 3))), self.audio(audio))
        return self.classifier((v + a) / 2), self.foreground((v + a) / 2, v, a)


def test_sbi_and_fee_work_in_another_model() -> None:
    torch.manual_seed(0)
    model, (audio, visual, target) = Other(), batch(8)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    values = []
    for _ in range(20):
        logits, event = model(audio, visual)
        fee = losses.foreground_enhancement(event, target.video)
        loss = losses.cross_entropy(logits, torch.eye(4)[target.labels]) + fee
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert values[-1] < 0.8 * values[0]
    assert not any(torch.equal(before[name], p) for name, p in model.named_parameters())


# What users get wrong


@pytest.mark.parametrize(
    ("audio_shape", "visual_shape"),
    [
        ((2, 5, 4), (2, 5, 2, 3, 6)),
        ((2, 5, 5), (2, 5, 2, 3, 7)),
        ((2, 5, 5), (2, 5, 3, 2, 6)),
        ((2, 5, 5), (1, 5, 2, 3, 6)),
        ((2, 5, 5), (2, 5, 6)),
        ((5, 5), (5, 2, 3, 6)),
        ((2, 0, 5), (2, 0, 2, 3, 6)),
        ((2, 0, 5), (2, 5, 2, 3, 6)),
        ((0, 5, 5), (0, 5, 2, 3, 6)),
    ],
)
@every_task
def test_wrong_shapes_are_named(task: str, audio_shape: tuple[int, ...], visual_shape: tuple[int, ...]) -> None:
    with pytest.raises(AvelError) as caught:
        tiny(task)(torch.zeros(audio_shape), torch.zeros(visual_shape))
    assert str(audio_shape) in caught.value.found and str(visual_shape) in caught.value.found
    assert "audio (B, T, 5) and visual (B, T, 2, 3, 6)" in caught.value.expected


@pytest.mark.parametrize(
    ("options", "found", "expected"),
    [
        ({"width": 9, "heads": 3}, "width 9 with 3 heads", "even"),
        ({"width": 8, "heads": 3}, "width 8 with 3 heads", "divisible by heads"),
        ({"width": 0}, "width 0", "even"),
        ({"heads": -2}, "-2 heads", "divisible"),
        ({"dropout": 1.0}, "dropout 1.0", "0 <= dropout < 1"),
        ({"dropout": -0.1}, "dropout -0.1", "0 <= dropout < 1"),
        ({"threshold": 1.0}, "threshold 1.0", "0 <= threshold < 1"),
        ({"threshold": -0.1}, "threshold -0.1", "0 <= threshold < 1"),
        ({"temperature": 0.0}, "temperature 0.0", "above 0"),
        ({"focal_alpha": 1.5}, "focal alpha 1.5", "0 <= alpha <= 1"),
        ({"focal_alpha": -0.5}, "focal alpha -0.5", "0 <= alpha <= 1"),
        ({"temperature": math.inf}, "temperature inf", "finite"),
        ({"temperature": math.nan}, "temperature nan", "finite"),
        ({"focal_gamma": -1.0}, "gamma -1.0", "not below 0"),
        ({"focal_gamma": math.inf}, "gamma inf", "a finite gamma"),
        ({"dropout": math.nan}, "dropout nan", "0 <= dropout < 1"),
        ({"threshold": math.nan}, "threshold nan", "0 <= threshold < 1"),
        ({"fee_weight": -1.0}, "loss weights -1.0", "none below 0"),
        ({"fee_weight": math.inf}, "loss weights inf", "finite"),
        ({"wccl_weight": math.nan}, "and nan", "finite"),
        ({"wccl_weight": -1.0}, "and -1.0", "none below 0"),
        ({"task": "dance"}, "task 'dance' for ccln", "full or weak or cml"),
        ({"task": "weak", "fee_level": "segment"}, "fee_level segment in task weak", "no labels for segments"),
        ({"task": "cml", "without": "fee"}, "without fee in task cml", "cml has no FEE"),
        ({"task": "cml", "without": "integration"}, "without integration in task cml", "another ablation"),
        ({"branch": "AV+W"}, "option branch of ccln is 'AV+W'", "AV | AV+V | AV+A | AV+V+A"),
        ({"without": "everything"}, "option without of ccln is 'everything'", " | ".join(ABLATIONS)),
        ({"weak_pool": True, "task": "weak"}, "option weak_pool of ccln is True", "mean | sum"),
        ({"input_map": 1}, "option input_map of ccln is 1", "true | false"),
        ({"width": 8.0}, "option width of ccln is 8.0", "a whole number"),
        ({"dropout": "much"}, "option dropout of ccln is 'much'", "a number"),
    ],
    ids=str,
)
def test_impossible_options_are_named(options: dict[str, Any], found: str, expected: str) -> None:
    with pytest.raises(AvelError) as caught:
        tiny(**options)
    assert found in caught.value.found and expected in caught.value.expected and caught.value.do


@pytest.mark.parametrize("part", [lambda: Interaction(8, -1), lambda: Interaction(8, 1.0)])
def test_the_gate_alone_refuses_a_threshold_that_cuts_all(part: Callable[[], nn.Module]) -> None:
    with pytest.raises(AvelError, match="threshold"):
        part()


@pytest.mark.parametrize(
    "options",
    [
        {"dropout": 0, "threshold": 0, "focal_gamma": 0, "fee_weight": 0, "wccl_weight": 0},
        {"focal_alpha": 1},
    ],
    ids=str,
)
def test_what_is_just_possible_is_taken(options: dict[str, Any]) -> None:
    step(tiny(**options), *batch())


def test_the_table_above_names_a_test_for_every_equation() -> None:
    rows = re.findall(r"^([\d, -]+\d) +(test_\w+)", __doc__, re.MULTILINE)
    covered: list[int] = []
    for numbers, name in rows:
        assert callable(globals()[name])
        for first, _, last in (part.partition("-") for part in numbers.split(",")):
            covered += range(int(first), int(last or first) + 1)
    assert sorted(covered) == list(range(1, 39))
