"""Every YAML in configs/ builds its model and takes a step; the demo trains what its YAML says."""

import inspect
import json
import re
from pathlib import Path

import pytest
import yaml
from synthetic import write_store

from avel.cli import VERBS
from avel.config import TrainConfig
from avel.demo import WIDTH, demo
from avel.models import MODELS, _options
from avel.training import train
from avel.verbs import parse

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def read(file: Path, store: Path, out: Path) -> TrainConfig:
    """As `avel train --config FILE --store STORE --out OUT` reads it."""
    _, chosen = parse(["train", f"--config={file}", f"--store={store}", f"--out={out}"], VERBS)
    return TrainConfig(**{key: value for key, value in chosen.items() if key not in ("config", "seeds")})


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_it_trains(file: Path, tmp_path: Path) -> None:
    settings = yaml.safe_load(file.read_text())
    store = write_store(tmp_path / "store", segments=settings["window"])
    config = read(file, store.path, tmp_path / "run")
    assert {key: getattr(config, key) for key in settings} == settings
    run = train(TrainConfig(**{**vars(config), "epochs": 1, "device": "cpu", "threads": 1}))
    assert len(run.metrics) == 1


#: What the paper prints and can be computed, and its weights as docs/fidelity.md resolves them, in all three presets.
PRINTED = {
    "dropout": 0.2,
    "tau_scale": "absolute",
    "branch": "AV+V",
    "wccl_reduction": "mean",
}
SEGMENTS = {"fee_gate": "product", "fee_level": "video", "classification": "sigmoid_focal", "focal_alpha": 0.25}
SEGMENTS |= {"focal_gamma": 2.0, "fee_weight": 150 / 128, "wccl_weight": 25 / 128}
OF_TASK: dict[str, dict[str, object]] = {
    "full": {**SEGMENTS, "threshold": 0.05},
    "weak": {**SEGMENTS, "threshold": 0.06, "weak_pool": "sum"},
    "cml": {"threshold": 0.05, "cml_loss": "exponential", "cml_pairs": "synchronous", "wccl_weight": 150 / 128},
}
RATES = {"full": 1e-3, "weak": 1e-4, "cml": 1e-4}


@pytest.mark.parametrize("task", OF_TASK)
def test_the_paper_preset_holds_what_is_printed(task: str) -> None:
    file = CONFIGS[0].parent / f"ave_{task}_ccln_paper.yaml"
    settings = yaml.safe_load(file.read_text())
    options = settings["options"]
    assert {name: options[name] for name in PRINTED} == PRINTED
    assert {name: options[name] for name in OF_TASK[task]} == OF_TASK[task]
    assert (settings["task"], settings["window"], settings["learning_rate"]) == (task, 10, RATES[task])
    assert (settings["epochs"], settings["batch_size"], settings["schedule"]) == (200, 128, "constant")
    assert settings.get("cml_mode", "joint") == "joint"
    if task == "weak":
        assert (settings["weak_labels"], settings["background_videos"]) == ("proportion", False)


@pytest.mark.parametrize("task", OF_TASK)
def test_every_line_of_a_paper_preset_says_where_it_is_from_and_every_open_option_has_one(task: str) -> None:
    lines = (CONFIGS[0].parent / f"ave_{task}_ccln_paper.yaml").read_text().splitlines()
    lines = [line for line in lines if not line.startswith(("#", "model:", "task:", "options:"))]
    assert [line for line in lines if not re.search(r"# (printed|resolved|silent)\b", line)] == []
    given = {line.split(":")[0].strip() for line in lines}
    ours = {"without"}  # what an ablation leaves out is no choice of the paper
    wanted = {name for name, (*_, tasks) in _options(MODELS["ccln"]).items() if not tasks or task in tasks}
    assert wanted - ours <= given


def test_the_demo_trains_what_its_config_says() -> None:
    settings = yaml.safe_load((CONFIGS[0].parent / "rendered_full_ccln.yaml").read_text())
    assert settings.pop("options") == {"width": WIDTH}
    assert (settings.pop("batch_size"), settings.pop("feature_noise")) == (16, 0.5)
    assert settings.pop("epochs") == inspect.signature(demo).parameters["epochs"].default
    defaults = TrainConfig(Path("store"), Path("out"))
    assert {key: getattr(defaults, key) for key in settings} == settings


@pytest.mark.parametrize("task", ["full", "weak", "cml"])
def test_a_preset_names_all_that_the_study_found_better_on_validation(task: str) -> None:
    """Its head says so for each row whose interval lies above 0, and gives the gain that stands in results/."""
    said = (ROOT / "configs" / f"ave_{task}_ccln.yaml").read_text().partition("model:")[0]
    better = []
    for table in ("choices", "modules"):
        rows = json.loads((ROOT / "results" / f"study_{table}.json").read_text())["rows"]
        better += [row for row in rows if row["task"] == task and row["val"].get("difference", [0, 0])[1] > 0]
    for row in better:
        assert row["name"].removeprefix("without ") in said, row["name"]
        assert f"{100 * row['val']['difference'][0]:.1f}" in said, row["name"]
    assert ("Nothing that the study tried" in said) == (not better)
