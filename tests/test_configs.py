"""Every YAML in configs/ builds its model and takes a step; the demo trains what its YAML says."""

import inspect
from pathlib import Path

import pytest
import yaml
from synthetic import write_store

from avel.cli import VERBS, Verb, _parser
from avel.config import TrainConfig
from avel.demo import WIDTH, demo
from avel.training import train

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


def read(file: Path, store: Path, out: Path) -> TrainConfig:
    """As `avel train --config FILE --store STORE --out OUT` reads it."""
    verb = VERBS["train"]
    assert isinstance(verb, Verb)
    parser = _parser()
    verb.add_options(parser)
    words = parser.parse_args([f"--config={file}", f"--store={store}", f"--out={out}"])
    return TrainConfig(**{key: value for key, value in words.items() if key not in ("config", "seeds")})


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_it_trains(file: Path, tmp_path: Path) -> None:
    settings = yaml.safe_load(file.read_text())
    store = write_store(tmp_path / "store", segments=settings["window"])
    config = read(file, store.path, tmp_path / "run")
    assert {key: getattr(config, key) for key in settings} == settings
    run = train(TrainConfig(**{**vars(config), "epochs": 1, "device": "cpu", "threads": 1}))
    assert len(run.metrics) == 1


def test_the_demo_trains_what_its_config_says() -> None:
    settings = yaml.safe_load((CONFIGS[0].parent / "rendered_full_ccln.yaml").read_text())
    assert settings.pop("options") == {"width": WIDTH}
    assert (settings.pop("batch_size"), settings.pop("feature_noise")) == (16, 0.5)
    assert settings.pop("epochs") == inspect.signature(demo).parameters["epochs"].default
    defaults = TrainConfig(Path("store"), Path("out"))
    assert {key: getattr(defaults, key) for key in settings} == settings
