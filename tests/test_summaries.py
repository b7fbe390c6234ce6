"""What the command line prints of results."""

from pathlib import Path
from typing import Any

import pytest

from avel.comparison import Scores
from avel.evaluation import BaselineTable
from avel.summaries import print_baselines, print_scores


def test_in_a_narrow_terminal_the_name_of_each_run_is_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    score: dict[str, Any] = {
        "split": "test",
        "model": "ccln",
        "task": "cml",
        "selected_on": "val",
        "data": "simulated, not AVE (version 2, seed 0)",
        "joint": {"a2v": 0.5, "v2a": 0.5},
        "strict": {"a2v": 0.5, "v2a": 0.5},
        "baselines": {},
    }
    names = ["runs/cml-joint", "runs/cml-strict"]
    print_scores([Scores(Path(name), [Path(name)], [score], None, None, 0, []) for name in names])
    rows = [line.split("│")[1].strip() for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert "".join(rows) == "".join(names)


def test_trivial_baselines_have_their_full_names_in_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    print_baselines(BaselineTable("test", "", 9, {"all background": 0.4}, "test", {"first window": 0.25}, 8))
    printed = capsys.readouterr().out
    assert "first start" in printed and "25.0" in printed and "first window" not in printed
