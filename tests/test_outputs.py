"""Labels and probabilities of what models say: one rule for both, also where numbers are equal, huge or coarse."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning_fabric.plugins import MixedPrecision

from avel.metrics import labels_of
from avel.types import EventOutput, RelevanceOutput, SegmentOutput

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

#: Logits that are equal, huge, or differ by less than float32 sees after a softmax or a sigmoid.
LOGITS = st.one_of(
    st.sampled_from([0.0, -0.0, 1e-30, -1e-30, 1e-8, 17.0, 20.0, 30.0, -30.0, 100.0, -200.0, 6e4, -6e4]),
    st.floats(-5, 5),
    st.floats(-6e4, 6e4),
)


def drawn(data: st.DataObject, dtype: torch.dtype, *shape: int) -> torch.Tensor:
    count = int(np.prod(shape))
    values = data.draw(st.lists(LOGITS, min_size=count, max_size=count))
    return torch.tensor(values, dtype=torch.float64).to(dtype).view(shape)


def check(output: EventOutput, shape: tuple[int, ...]) -> None:
    probabilities = output.probabilities()
    assert probabilities.shape == shape and output.labels().shape == shape[:2]
    assert output.labels().dtype == torch.int64
    assert ((probabilities >= 0) & (probabilities <= 1)).all()
    assert torch.allclose(probabilities.sum(-1), torch.ones((), dtype=probabilities.dtype), atol=1e-5)
    assert torch.equal(probabilities.argmax(-1), output.labels())
    # The same on the way to a timeline, which is NumPy in float64.
    assert np.array_equal(labels_of(probabilities.double().numpy()), output.labels().numpy())


sizes = st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 4))


@settings(max_examples=80, deadline=None)
@given(st.data(), sizes, st.sampled_from(DTYPES), st.booleans())
def test_labels_of_segments_are_the_argmax_of_the_logits_and_of_the_probabilities(
    data: st.DataObject, size: tuple[int, int, int], dtype: torch.dtype, multilabel: bool
) -> None:
    videos, segments, classes = size
    logits = drawn(data, dtype, videos, segments, classes + 1)
    output = SegmentOutput(logits, multilabel=multilabel)
    check(output, logits.shape)
    assert torch.equal(output.labels(), logits.argmax(-1))


@settings(max_examples=80, deadline=None)
@given(st.data(), sizes, st.sampled_from(DTYPES), st.booleans())
def test_labels_of_relevance_and_category_are_the_rule_of_the_papers(
    data: st.DataObject, size: tuple[int, int, int], dtype: torch.dtype, background: bool
) -> None:
    """Background where sigmoid(o) <= 0.5, else the video's best category; of C+1 that may be background itself."""
    videos, segments, classes = size
    relevance = drawn(data, dtype, videos, segments)
    category = drawn(data, dtype, videos, classes + background)
    output = RelevanceOutput(relevance, category, classes)
    check(output, (videos, segments, classes + 1))
    for video in range(videos):
        scores = category[video].tolist()
        for segment in range(segments):
            best = scores.index(max(scores)) if relevance[video, segment].item() > 0 else classes
            assert output.labels()[video, segment].item() == best


def test_probabilities_of_segments_are_the_softmax_or_the_shares_of_the_sigmoids() -> None:
    logits = torch.randn(3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(SegmentOutput(logits).probabilities(), logits.softmax(-1))
    shares = logits.sigmoid() / logits.sigmoid().sum(-1, keepdim=True)
    assert torch.allclose(SegmentOutput(logits, multilabel=True).probabilities(), shares)


def test_saturated_sigmoids_keep_their_order() -> None:
    """In float32 sigmoid(20) and sigmoid(30) are both 1, and sigmoid(-200) is 0."""
    logits = torch.tensor([[[20.0, 30.0, 17.0], [-200.0, -190.0, -200.0]]])
    output = SegmentOutput(logits, multilabel=True)
    assert output.labels().tolist() == output.probabilities().argmax(-1).tolist() == [[1, 1]]
    assert output.probabilities().isfinite().all()


def test_a_certain_category_leaves_the_relevance_as_it_is() -> None:
    relevance = torch.tensor([[-3.0, -0.1, 0.1, 3.0]])
    found = RelevanceOutput(relevance, torch.tensor([[0.0, 60.0, 0.0]]), 3).probabilities()
    assert torch.allclose(found[..., 1], relevance.sigmoid(), atol=1e-6)
    assert torch.allclose(found[..., 3], (-relevance).sigmoid(), atol=1e-6)


def test_an_uncertain_category_is_no_background() -> None:
    """r = 0.6 and 28 categories alike: r q of each is 0.02, and yet the rule says the first of them."""
    relevance = torch.tensor([[0.6, 0.5, 0.4]]).logit()
    output = RelevanceOutput(relevance, torch.zeros(1, 28), 28)
    assert output.labels().tolist() == [[0, 28, 28]] == output.probabilities().argmax(-1).tolist()
    assert output.probabilities()[0, 0, 0].item() == pytest.approx(0.6 / (28 * 0.6 + 0.4))


def test_a_window_whose_best_category_is_background_has_no_event() -> None:
    output = RelevanceOutput(torch.tensor([[5.0, -5.0]]), torch.tensor([[1.0, 0.0, 2.0]]), 2)
    assert output.labels().tolist() == [[2, 2]]
    weights = np.array([np.exp(-1), np.exp(-2), 1]) / (1 + np.exp(-5))  # r q / max(q); 1 - r is less than r
    assert output.probabilities()[0, 0].tolist() == pytest.approx((weights / weights.sum()).tolist(), rel=1e-5)


def test_what_is_not_finite_stays_so() -> None:
    """Nobody may take it for a label: `localize` refuses such probabilities."""
    nan = torch.tensor([[[0.0, torch.nan, 1.0]]])
    outputs: list[Any] = [SegmentOutput(nan), SegmentOutput(nan, multilabel=True)]
    outputs += [RelevanceOutput(nan[0], torch.zeros(1, 2), 2), RelevanceOutput(torch.zeros(1, 3), nan[0], 3)]
    assert all(output.probabilities().isnan().any() for output in outputs)


def test_fabric_can_rebuild_what_a_model_returns() -> None:
    """It casts the floating-point tensors of an output, field by field."""
    output = RelevanceOutput(
        torch.ones(1, 3).half(), torch.zeros(1, 2).half(), 2, None, {"category": torch.zeros(1, 2)}
    )
    cast = MixedPrecision("bf16-mixed", "cpu").convert_output(output)
    assert isinstance(cast, RelevanceOutput) and cast.num_classes == 2 and set(cast.parts) == {"category"}
    assert cast.relevance.dtype == cast.category.dtype == torch.float32
    assert cast.labels().tolist() == [[0, 0, 0]]
