"""What every model in MODELS keeps to in every task it has, and what ``build_model`` says to those who ask for another.

The tests know a model by what it declares (`avel.types.Model`) and never by its name.
"""

import json
import re
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
from safetensors.torch import load_file, save_file
from synthetic import write_store
from torch import nn

from avel.checkpoint import load
from avel.config import TrainConfig
from avel.errors import AvelError
from avel.metrics import locate
from avel.models import MODELS, build_model, describe_options
from avel.training import train
from avel.types import DistanceOutput, Fidelity, Output, Paper, RelevanceOutput, SegmentOutput, Target

AUDIO_DIM, VISUAL_DIM, GRID, NUM_CLASSES = 6, 8, (3, 2), 4
TASKS = ("full", "weak", "cml")

every_model = pytest.mark.parametrize("name", sorted(MODELS))
every_model_and_task = pytest.mark.parametrize(
    ("name", "task"), [(name, task) for name in sorted(MODELS) for task in MODELS[name].tasks]
)


def build(name: str, task: str = "", grid: tuple[int, int] = GRID, seed: int = 0, **options: Any) -> nn.Module:
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {"audio_dim": AUDIO_DIM, "visual_dim": VISUAL_DIM, "num_classes": NUM_CLASSES}
    return build_model(
        name, grid=grid, task=task or (MODELS[name].tasks[0] if name in MODELS else "full"), **sizes, **options
    )


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
    video = torch.where((labels < NUM_CLASSES).any(1), video, NUM_CLASSES)
    return audio, visual, Target(labels, video, torch.eye(NUM_CLASSES + 1)[video])


def loss(model: nn.Module, output: Output, target: Target) -> dict[str, torch.Tensor]:
    return model.loss(output.parts, target)  # type: ignore[operator]


def main(output: Output) -> list[torch.Tensor]:
    if isinstance(output, RelevanceOutput):
        return [output.relevance, output.category]
    return [output.distance if isinstance(output, DistanceOutput) else output.logits]


def tensors(output: Output) -> list[torch.Tensor]:
    maps = [] if output.attention is None else [output.attention]
    return [*main(output), *maps, *output.parts.values()]


@every_model
def test_a_model_declares_what_it_is(name: str) -> None:
    model = MODELS[name]
    assert model.tasks and len({*model.tasks}) == len(model.tasks) and {*model.tasks} <= {*TASKS}
    assert model.fidelity in get_args(Fidelity)
    assert isinstance(model.paper, Paper) and len(model.paper.citation) > 20 and 2018 <= model.paper.year <= 2100
    assert isinstance(model.stochastic, bool)
    for task in model.tasks:
        assert isinstance(build(name, task).least_loss, float)


@every_model
def test_a_task_that_the_model_does_not_have_is_refused(name: str) -> None:
    for task in {*TASKS, "dance"} - {*MODELS[name].tasks}:
        with pytest.raises(AvelError) as caught:
            build(name, task)
        assert caught.value.found == f"task {task!r} for {name}"
        assert caught.value.expected == " or ".join(MODELS[name].tasks) and caught.value.do


@every_model_and_task
@pytest.mark.parametrize(("num_videos", "num_segments"), [(3, 10), (1, 10), (3, 7), (1, 1)])
@pytest.mark.parametrize("grid", [GRID, (1, 1)])
def test_shapes(name: str, task: str, num_videos: int, num_segments: int, grid: tuple[int, int]) -> None:
    model = build(name, task, grid)
    audio, visual, target = batch(num_videos, num_segments, grid=grid)
    output = model(audio, visual)
    if task == "cml":
        assert isinstance(output, DistanceOutput)
        assert output.distance.shape == (num_videos, num_segments, num_segments)
        assert (output.distance >= 0).all()
    else:
        assert isinstance(output, SegmentOutput | RelevanceOutput)
        probabilities, labels = output.probabilities(), output.labels()
        assert probabilities.shape == (num_videos, num_segments, NUM_CLASSES + 1)
        assert torch.allclose(probabilities.sum(-1), torch.tensor(1.0))
        assert torch.equal(probabilities.argmax(-1), labels) and labels.dtype == torch.int64
    if output.attention is not None:
        assert output.attention.shape == (num_videos, num_segments, *grid)
        assert torch.allclose(output.attention.sum((2, 3)), torch.tensor(1.0))
    assert all(len(part) == num_videos for part in output.parts.values())  # what data parallelism gathers along
    terms = loss(model, output, target)
    assert all(term.shape == () and term.isfinite() for term in terms.values())
    named = [term for key, term in terms.items() if key != "total"]
    assert named and torch.allclose(terms["total"], torch.stack(named).sum())
    assert terms["total"] > model.least_loss - 1e-6


@pytest.mark.parametrize("name", [name for name in sorted(MODELS) if "cml" in MODELS[name].tasks])
@pytest.mark.parametrize(("num_audio", "num_visual"), [(3, 10), (10, 3), (1, 10), (10, 1)])
def test_a_query_of_a_few_segments(name: str, num_audio: int, num_visual: int) -> None:
    """Task cml takes streams of two lengths, the longer one being searched for what the shorter holds."""
    model = build(name, "cml")
    audio, visual, _ = batch(2)
    labels = torch.full((2, 10), NUM_CLASSES)
    length = min(num_audio, num_visual)
    labels[0, 4 : 4 + length], labels[1, :length] = 1, 2
    target = Target(labels, torch.tensor([1, 2]), torch.eye(NUM_CLASSES + 1)[[1, 2]])
    output = model(audio[:, :num_audio], visual[:, :num_visual])
    assert output.distance.shape == (2, num_visual, num_audio)
    assert output.attention is None or output.attention.shape == (2, num_visual, *GRID)
    terms = loss(model, output, target)
    terms["total"].backward()
    assert all(term.shape == () and term.isfinite() for term in terms.values())
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@every_model_and_task
def test_every_parameter_learns(name: str, task: str) -> None:
    """A parameter whose gradient is nothing beside the largest one is dead weight, or a mistake."""
    model, largest = build(name, task), {}
    for seed in range(3):
        audio, visual, target = batch(10, seed=seed)
        model.zero_grad()
        loss(model, model(audio, visual), target)["total"].backward()
        for key, parameter in model.named_parameters():
            assert parameter.grad is not None, f"{key} has no gradient"
            largest[key] = max(largest.get(key, 0.0), parameter.grad.abs().max().item())
    least = 1e-6 * max(largest.values())
    assert not {key: value for key, value in largest.items() if not value > least}


@every_model_and_task
def test_training_draws_at_random_if_the_model_says_so_and_evaluation_never(name: str, task: str) -> None:
    model, (audio, visual, _) = build(name, task), batch(3)
    torch.manual_seed(1)
    one, other = tensors(model(audio, visual)), tensors(model(audio, visual))
    assert all(map(torch.equal, one, other)) is not MODELS[name].stochastic
    model.eval()
    for one_part, other_part in zip(tensors(model(audio, visual)), tensors(model(audio, visual)), strict=True):
        assert torch.equal(one_part, other_part)


@every_model_and_task
def test_permuting_the_batch_permutes_the_output(name: str, task: str) -> None:
    model, (audio, visual, target) = build(name, task).eval(), batch(6)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    output, permuted = model(audio, visual), model(audio[order], visual[order])
    for one, other in zip(tensors(output), tensors(permuted), strict=True):
        assert torch.allclose(one[order], other, atol=1e-5)
    moved = Target(target.labels[order], target.video[order], target.video_labels[order])
    assert torch.allclose(loss(model, output, target)["total"], loss(model, permuted, moved)["total"], atol=1e-5)


@every_model_and_task
def test_a_video_does_not_depend_on_its_batch(name: str, task: str) -> None:
    model, (audio, visual, _) = build(name, task).eval(), batch(4)
    alone = [tensors(model(audio[i : i + 1], visual[i : i + 1])) for i in range(4)]
    for whole, *single in zip(tensors(model(audio, visual)), *alone, strict=True):
        assert torch.allclose(whole, torch.cat(single), atol=1e-5)


@every_model_and_task
def test_saved_and_loaded_it_is_the_same(name: str, task: str, tmp_path: Path) -> None:
    model, (audio, visual, _) = build(name, task).eval(), batch(2)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    other = build(name, task, seed=1).eval()
    assert not all(map(torch.equal, main(model(audio, visual)), main(other(audio, visual))))
    other.load_state_dict(load_file(tmp_path / "model.safetensors"))
    for one, loaded in zip(tensors(model(audio, visual)), tensors(other(audio, visual)), strict=True):
        assert torch.equal(one, loaded)


@every_model_and_task
def test_inputs_are_cast_to_the_type_of_the_parameters(name: str, task: str) -> None:
    model, (audio, visual, _) = build(name, task).eval(), batch(2)
    audio, visual = audio.half(), visual.half()
    want = model(audio.float(), visual.float())
    for inputs in ((audio, visual), (audio.float(), visual), (audio.double(), visual)):
        assert all(map(torch.equal, tensors(model(*inputs)), tensors(want)))
    assert {tensor.dtype for tensor in tensors(model.double()(audio, visual))} == {torch.float64}


def overfit(name: str, task: str, steps: int, learning_rate: float) -> tuple[nn.Module, float, float]:
    """The model after some steps on eight short clips; how far its loss was above the least, before and after."""
    model, (audio, visual, target) = build(name, task), batch(8, 4)
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate, fused=True)
    values = []
    for _ in range(steps):
        total = loss(model, model(audio, visual), target)["total"]
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        values.append(total.item())
    return model, values[0] - model.least_loss, values[-1] - model.least_loss


@every_model_and_task
def test_it_learns_eight_clips(name: str, task: str) -> None:
    """In few steps, each large: `test_it_overfits_eight_clips` takes its time."""
    _, before, after = overfit(name, task, steps=10, learning_rate=4e-3)
    assert -1e-6 < after < 0.7 * before


@pytest.mark.slow
@every_model_and_task
def test_it_overfits_eight_clips(name: str, task: str) -> None:
    model, before, after = overfit(name, task, steps=120, learning_rate=1e-3)
    assert -1e-6 < after < before / 2
    audio, visual, target = batch(8, 4)
    output = model.eval()(audio, visual)
    if isinstance(output, DistanceOutput):
        together, distance = target.labels < NUM_CLASSES, output.distance.diagonal(dim1=1, dim2=2)
        if not distance[together].max() < distance[~together].min():  # as with a network that compares with a query
            assert finds_each_query(model, audio, visual, target)
    elif task == "full":
        assert (output.labels() == target.labels).float().mean() > 0.97
    else:  # of the segments it has no labels; the votes of a video's are for its class
        assert torch.equal(output.probabilities().mean(1).argmax(-1), target.video)


def finds_each_query(model: nn.Module, audio: torch.Tensor, visual: torch.Tensor, target: Target) -> bool:
    """Whether the model finds each event of a part of its clip in the other stream, by its segments alone."""
    found = []
    for row, labels in enumerate(target.labels):
        event = labels < NUM_CLASSES
        if 0 < event.sum() < len(event):
            start = int(event.nonzero()[0])
            by_audio = model(audio[row : row + 1, event], visual[row : row + 1]).distance[0]
            by_visual = model(audio[row : row + 1], visual[row : row + 1, event]).distance[0].T
            found += [locate(matrix.detach().numpy()) == start for matrix in (by_audio, by_visual)]
    return bool(found) and all(found)


@every_model
def test_options_have_a_meaning_and_the_wrong_ones_are_refused(name: str) -> None:
    with pytest.raises(AvelError) as caught:
        build(name, colour=3)
    assert "'colour'" in caught.value.found and describe_options(name) in caught.value.expected
    assert describe_options(name) or caught.value.expected == f"none: {name} has no options"
    for line in describe_options(name).splitlines():
        fields = re.fullmatch(r"    (\w+): (.+) \((.+); ([^;]+)\)", line)
        assert fields
        option, meaning, values, default = fields.groups()
        wrong = ["no such word", None, [1], True, 1.5, 1]
        if values == "true | false":
            wrong.remove(True)
            assert default.lower() in ("true", "false")
        elif values in ("a number", "a whole number"):
            wrong = ["no such word", None, [1], True] + ([1.5] if values == "a whole number" else [])
            assert float(default) is not None
        else:
            assert default in values.split(" | ")
        for value in wrong:
            with pytest.raises(AvelError) as caught:
                build(name, **{option: value})
            assert caught.value.found == f"option {option} of {name} is {value!r}"
            assert (caught.value.expected, caught.value.do) == (values, meaning)


@pytest.mark.parametrize(
    ("option", "value", "tasks"),
    [("weak_pool", "sum", ["weak"]), ("cml_loss", "exponential", ["cml"]), ("fee_weight", 1.0, ["full", "weak"])],
)
def test_an_option_that_the_task_does_not_read_is_refused(option: str, value: object, tasks: list[str]) -> None:
    for task in TASKS:
        if task in tasks:
            build("ccln", task, **{option: value})
        else:
            with pytest.raises(AvelError) as caught:
                build("ccln", task, **{option: value})
            assert caught.value.found == f"option {option} of ccln in task {task}"
            assert caught.value.expected == f"it only in task {' or '.join(tasks)}"


def test_an_unknown_model_is_refused_by_name() -> None:
    with pytest.raises(AvelError) as caught:
        build("resnet")
    assert "'resnet'" in caught.value.found and all(name in caught.value.expected for name in MODELS)


def test_whole_numbers_are_taken_for_fractions() -> None:
    assert build("ccln", dropout=0, temperature=1)


@every_model
def test_an_option_of_an_earlier_version_is_taken_at_the_value_that_is_left_and_refused_at_another(name: str) -> None:
    removed = getattr(get_type_hints(MODELS[name].__init__).get("options"), "removed", {})
    network = build(name, **removed)
    assert network.state_dict().keys() == build(name).state_dict().keys()
    for option, left in removed.items():
        with pytest.raises(AvelError) as caught:
            build(name, **{option: "another"})
        assert caught.value.found == f"option {option} of {name} is 'another'"
        assert repr(left) in caught.value.expected and "study-options" in caught.value.do
    if removed:  # of several, the same one is named every time
        with pytest.raises(AvelError, match=f"option {next(iter(removed))} of"):
            build(name, **dict.fromkeys(reversed(removed), "another"))
    assert not set(removed) & {line.split(":")[0].strip() for line in describe_options(name).splitlines()}


def test_a_checkpoint_that_names_removed_options_is_read_at_their_defaults_alone(tmp_path: Path) -> None:
    """As those do that the presets of earlier versions trained."""
    write_store(tmp_path / "store")
    settings: dict[str, Any] = {"store": tmp_path / "store", "out": tmp_path / "run", "window": 6, "epochs": 1}
    train(TrainConfig(**settings, device="cpu", options={"width": 8, "heads": 2}))
    file = tmp_path / "run" / "best.json"
    plain, description = load(file).network, json.loads(file.read_text())
    description["network"]["options"] |= {"pairing": "crossed", "embedding_width": 1}
    file.write_text(json.dumps(description))
    assert all(map(torch.equal, load(file).network.parameters(), plain.parameters()))
    description["network"]["options"]["pairing"] = "column"
    file.write_text(json.dumps(description))
    with pytest.raises(AvelError, match="option pairing of ccln is 'column'"):
        load(file)
