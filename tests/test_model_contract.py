"""What every model in MODELS keeps to, and what ``build_model`` says to those who ask for another."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from avel.errors import AvelError
from avel.models import MODELS, build_model, describe_options
from avel.types import SegmentOutput, Target

AUDIO_DIM, VISUAL_DIM, GRID, NUM_CLASSES = 6, 8, (3, 2), 4

every_model = pytest.mark.parametrize("name", sorted(MODELS))


def build(name: str, grid: tuple[int, int] = GRID, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"audio_dim": AUDIO_DIM, "visual_dim": VISUAL_DIM, "num_classes": NUM_CLASSES}
    return build_model(name, grid=grid, task="full", **sizes, **options)


def batch(
    num_videos: int, num_segments: int = 10, seed: int = 0, grid: tuple[int, int] = GRID
) -> tuple[torch.Tensor, torch.Tensor, Target]:
    """Each video has one event over a stretch of its segments; one in five has none."""
    generator = torch.Generator().manual_seed(seed)
    audio = torch.randn(num_videos, num_segments, AUDIO_DIM, generator=generator)
    visual = torch.randn(num_videos, num_segments, *grid, VISUAL_DIM, generator=generator)
    video = (torch.arange(num_videos) + seed) % (NUM_CLASSES + 1)
    labels = video[:, None].repeat(1, num_segments)
    for row in labels:
        start, end = torch.randint(num_segments + 1, (2,), generator=generator).sort().values.tolist()
        row[:start] = row[end + 1 :] = NUM_CLASSES
    return audio, visual, Target(labels, video)


def loss(model: nn.Module, output: SegmentOutput, target: Target) -> dict[str, torch.Tensor]:
    return model.loss(output.parts, target)  # type: ignore[operator]


@every_model
@pytest.mark.parametrize(("num_videos", "num_segments"), [(3, 10), (1, 10), (3, 7), (1, 1)])
@pytest.mark.parametrize("grid", [GRID, (1, 1)])
def test_shapes(name: str, num_videos: int, num_segments: int, grid: tuple[int, int]) -> None:
    model = build(name, grid)
    audio, visual, target = batch(num_videos, num_segments, grid=grid)
    output = model(audio, visual)
    assert output.logits.shape == output.probabilities().shape == (num_videos, num_segments, NUM_CLASSES + 1)
    assert torch.allclose(output.probabilities().sum(-1), torch.tensor(1.0))
    assert output.labels().shape == (num_videos, num_segments) and output.labels().dtype == torch.int64
    if output.attention is not None:
        assert output.attention.shape == (num_videos, num_segments, *grid)
        assert torch.allclose(output.attention.sum((2, 3)), torch.tensor(1.0))
    assert all(len(part) == num_videos for part in output.parts.values())  # what data parallelism gathers along
    terms = loss(model, output, target)
    assert all(term.shape == () and term.isfinite() for term in terms.values())
    named = [term for key, term in terms.items() if key != "total"]
    assert named and torch.allclose(terms["total"], torch.stack(named).sum())


@every_model
def test_every_parameter_learns(name: str) -> None:
    """A parameter whose gradient is nothing beside the largest one is dead weight, or a mistake."""
    model, largest = build(name), {}
    for seed in range(3):
        audio, visual, target = batch(10, seed=seed)
        model.zero_grad()
        loss(model, model(audio, visual), target)["total"].backward()
        for key, parameter in model.named_parameters():
            assert parameter.grad is not None, f"{key} has no gradient"
            largest[key] = max(largest.get(key, 0.0), parameter.grad.abs().max().item())
    least = 1e-6 * max(largest.values())
    assert not {key: value for key, value in largest.items() if not value > least}


@every_model
def test_evaluation_is_deterministic_and_training_is_not(name: str) -> None:
    model, (audio, visual, _) = build(name), batch(3)
    assert not torch.equal(model(audio, visual).logits, model(audio, visual).logits)  # dropout
    model.eval()
    assert torch.equal(model(audio, visual).logits, model(audio, visual).logits)


@every_model
def test_permuting_the_batch_permutes_the_output(name: str) -> None:
    model, (audio, visual, target) = build(name).eval(), batch(6)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    output, permuted = model(audio, visual), model(audio[order], visual[order])
    for one, other in zip(_tensors(output), _tensors(permuted), strict=True):
        assert torch.allclose(one[order], other, atol=1e-5)
    moved = Target(target.labels[order], target.video[order])
    assert torch.allclose(loss(model, output, target)["total"], loss(model, permuted, moved)["total"], atol=1e-5)


@every_model
def test_a_video_does_not_depend_on_its_batch(name: str) -> None:
    model, (audio, visual, _) = build(name).eval(), batch(4)
    alone = torch.cat([model(audio[i : i + 1], visual[i : i + 1]).logits for i in range(4)])
    assert torch.allclose(model(audio, visual).logits, alone, atol=1e-5)


@every_model
def test_saved_and_loaded_it_is_the_same(name: str, tmp_path: Path) -> None:
    model, (audio, visual, _) = build(name).eval(), batch(2)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    torch.manual_seed(1)
    other = build_model(
        name, audio_dim=AUDIO_DIM, visual_dim=VISUAL_DIM, grid=GRID, num_classes=NUM_CLASSES, task="full"
    ).eval()
    assert not torch.equal(model(audio, visual).logits, other(audio, visual).logits)
    other.load_state_dict(load_file(tmp_path / "model.safetensors"))
    for one, loaded in zip(_tensors(model(audio, visual)), _tensors(other(audio, visual)), strict=True):
        assert torch.equal(one, loaded)


@every_model
def test_inputs_are_cast_to_the_type_of_the_parameters(name: str) -> None:
    model, (audio, visual, _) = build(name).eval(), batch(2)
    audio, visual = audio.half(), visual.half()
    want = model(audio.float(), visual.float())
    for inputs in ((audio, visual), (audio.float(), visual), (audio.double(), visual)):
        assert all(map(torch.equal, _tensors(model(*inputs)), _tensors(want)))
    assert {tensor.dtype for tensor in _tensors(model.double()(audio, visual))} == {torch.float64}


@every_model
def test_it_overfits_eight_clips(name: str) -> None:
    model, (audio, visual, target) = build(name), batch(8)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    first = None
    for _ in range(60):
        terms = loss(model, model(audio, visual), target)
        first = first or terms["total"].item()
        optimizer.zero_grad()
        terms["total"].backward()
        optimizer.step()
    assert terms["total"].item() < first / 2
    assert (model.eval()(audio, visual).labels() == target.labels).float().mean() > 0.97


@every_model
def test_options_have_a_meaning_and_the_wrong_ones_are_refused(name: str) -> None:
    with pytest.raises(AvelError) as caught:
        build(name, colour=3)
    assert "'colour'" in caught.value.found and describe_options(name) in caught.value.expected
    for line in describe_options(name).splitlines():
        option, _, meaning = line.strip().partition(": ")
        assert meaning
        for wrong in ("many", None, True):
            with pytest.raises(AvelError, match=f"option {option} of {name} is {wrong!r}"):
                build(name, **{option: wrong})


@every_model
def test_a_task_that_is_not_built_is_refused(name: str) -> None:
    with pytest.raises(AvelError, match="task 'dance'"):
        build_model(name, audio_dim=1, visual_dim=1, grid=(1, 1), num_classes=1, task="dance")


def test_an_unknown_model_is_refused_by_name() -> None:
    with pytest.raises(AvelError) as caught:
        build("resnet")
    assert "'resnet'" in caught.value.found and all(name in caught.value.expected for name in MODELS)


def test_whole_numbers_are_taken_for_fractions() -> None:
    assert build("ccln", dropout=0, temperature=1)


def _tensors(output: SegmentOutput) -> list[torch.Tensor]:
    maps = [] if output.attention is None else [output.attention]
    return [output.logits, *maps, *output.parts.values()]
