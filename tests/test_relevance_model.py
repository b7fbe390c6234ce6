"""A model of relevance x category that changes with the epoch, all the way: trained, resumed, evaluated."""

from pathlib import Path
from typing import ClassVar

import pytest
import torch
from synthetic import write_store
from torch import Tensor, nn
from torch.nn import functional

from avel.checkpoint import load
from avel.config import TrainConfig
from avel.data.loader import Windows, task_split
from avel.data.store import open_store
from avel.evaluation import evaluate
from avel.models import MODELS
from avel.training import train
from avel.types import Fidelity, Paper, RelevanceOutput, Target


class TwoHeads(nn.Module):
    """A linear map, a relevance for each segment and a category for the window: CMRAN's heads and little else."""

    tasks: ClassVar[tuple[str, ...]] = ("full", "weak")
    fidelity: ClassVar[Fidelity] = "reconstruction"
    paper: ClassVar[Paper] = Paper("Nobody: no paper, a test", 2026)
    stochastic: ClassVar[bool] = False
    least_loss = 0.0
    began: ClassVar[list[tuple[int, int]]] = []

    def __init__(self, *, audio_dim: int, visual_dim: int, grid: tuple[int, int], num_classes: int, task: str) -> None:
        super().__init__()
        self.task, self.num_classes = task, num_classes
        self.encoder = nn.Linear(audio_dim + visual_dim, 16)
        self.relevance = nn.Linear(16, 1)
        self.category = nn.Linear(16, num_classes + (task == "weak"))
        self.contrasting: Tensor
        self.register_buffer("contrasting", torch.tensor(False))

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        self.began.append((epoch, epochs))
        self.contrasting.fill_(epoch > epochs // 2)

    def forward(self, audio: Tensor, visual: Tensor) -> RelevanceOutput:
        x = self.encoder(torch.cat([audio, visual.float().amax((2, 3))], -1)).relu()
        parts = {"relevance": self.relevance(x).squeeze(-1), "category": self.category(x.amax(1))}
        return RelevanceOutput(parts["relevance"], parts["category"], self.num_classes, None, parts)

    def loss(self, parts: dict[str, Tensor], target: Target) -> dict[str, Tensor]:
        relevance, category = parts["relevance"], parts["category"]
        if self.task == "weak":
            video = (relevance.sigmoid().unsqueeze(-1) * category.unsqueeze(1)).amax(1)
            terms = {"video": functional.cross_entropy(video, target.video_labels)}
        else:
            event = (target.labels < self.num_classes).to(relevance.dtype)
            terms = {
                "relevance": functional.binary_cross_entropy_with_logits(relevance, event),
                "category": functional.cross_entropy(category, target.video, ignore_index=self.num_classes),
            }
        return {**terms, "total": torch.stack(list(terms.values())).sum()}


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "two_heads", TwoHeads)
    TwoHeads.began.clear()


def config(folder: Path, task: str, epochs: int) -> TrainConfig:
    settings = {"store": folder / "store", "out": folder / "run", "window": 6, "batch_size": 8, "device": "cpu"}
    return TrainConfig(
        **settings, model="two_heads", task=task, epochs=epochs, learning_rate=4e-2, validate_every=3, threads=1
    )  # type: ignore[arg-type]


@pytest.mark.parametrize("task", ["full", "weak"])
def test_training_the_network_and_evaluation_give_the_same_labels(tmp_path: Path, task: str) -> None:
    write_store(tmp_path / "store", clips=48, noise=0.2, background=6)
    run = train(config(tmp_path, task, epochs=15))
    assert run.best_accuracy > (0.85 if task == "full" else 0.35)
    folder = tmp_path / "run"
    store = open_store(tmp_path / "store")
    windows = Windows(store, task_split(store, "val", task), 6)
    network = load(folder).network
    right = torch.cat(
        [
            (network(batch.audio, batch.visual).labels() == batch.target.labels)[batch.counted]
            for batch in windows.batches(8)
        ]
    )
    assert right.double().mean().item() == pytest.approx(run.best_accuracy)
    if task == "full":  # its pictures take seconds
        assert evaluate(folder, "val")["segment_accuracy"] == pytest.approx(run.best_accuracy)


def test_a_model_learns_which_epoch_begins_and_its_checkpoint_remembers(tmp_path: Path) -> None:
    write_store(tmp_path / "store")
    train(config(tmp_path, "full", epochs=2))
    assert TwoHeads.began == [(1, 2), (2, 2)]
    assert load(tmp_path / "run" / "last.json").network.contrasting
    train(config(tmp_path, "full", epochs=4))  # resumed
    assert TwoHeads.began[2:] == [(3, 4), (4, 4)]
