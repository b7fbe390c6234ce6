"""The command line: answers at once, says what is wrong in a line, exits with the right code."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import rich.progress

from avel import cli, console
from avel.data.store import open_store
from avel.errors import AvelError
from avel.summaries import mean_and_spread

ROOT = Path(__file__).parents[1]
VERBS = [
    ["demo"],
    ["data", "render"],
    ["data", "import-ave"],
    ["data", "simulate"],
    ["data", "check"],
    ["data", "compare"],
    ["extract"],
    ["train"],
    ["evaluate"],
    ["localize"],
]


def run(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "avel", *map(str, words)], capture_output=True, text=True, timeout=120)


def test_help_lists_every_verb_without_loading_torch() -> None:
    code = "import sys, avel.cli\ntry: avel.cli.main(['--help'])\nfinally: assert 'torch' not in sys.modules"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert all(verb[0] in result.stdout for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_every_help_ends_with_an_example(verb: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([*verb, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    _, _, example = text.partition("example:\n")
    assert example.strip().startswith("avel " + " ".join(verb))
    assert "prints" in example
    assert "_" not in "".join(word for word in text.split() if word.startswith("--"))


@pytest.mark.parametrize("words", [[], ["data"]])
def test_a_verb_that_is_missing_shows_the_help(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    assert stop.value.code == 0
    assert "verbs:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nonsense"], "nonsense"),
        (["train", "--store", "s"], "required: out"),
        (["train", "--store", "s", "--out", "o", "--batch-size", "x"], "--batch-size x: expected a value of type int"),
        (["train", "--store", "s", "--out", "o", "--epochs", "many"], "--epochs many: expected a value of type int"),
        (
            ["train", "--store", "s", "--out", "o", "--streams", "smell"],
            "--streams smell: expected one of 'both', 'audio', 'visual'",
        ),
        (["train", "--store", "s", "--out", "o", "--no-such-option", "1"], "--no-such-option"),
        (["train", "--config", "no-such.yaml", "--store", "s", "--out", "o"], "no-such.yaml"),
    ],
)
def test_wrong_usage_exits_with_2_and_names_the_word(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    assert stop.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data", "import-ave", "no-such-folder", "--out", "store"], "no-such-folder"),
        (["data", "import-ave", ".", "--dry-run"], "Annotations.txt"),
        (["data", "simulate", "--out", "sim", "--videos", "2"], "videos = 2"),
        (["data", "check", "no-such-store"], "no-such-store"),
        (["data", "check", "data"], "data"),  # a last word that is a verb, too
        (["data", "compare", "no-such-store", "other"], "no-such-store"),
        (["extract", "no-such.csv", "--out", "store"], "no-such.csv"),
        (["extract", "Annotations.txt", "--videos", ".", "--out", "store"], "Annotations.txt"),
        (
            ["extract", ".", "--out", "store", "--visual-weights", "w.h5"],
            "weights for the visual extractor 'classical'",
        ),
        (
            ["extract", ".", "--out", "store", "--frames-per-segment", "8", "--visual-options.frames_per_segment", "4"],
            "--visual-options.frames_per_segment beside the option that says the same",
        ),
        (["train", "--store", "no-such-store", "--out", "run"], "no-such-store"),
        (["evaluate", "no-such-run"], "no-such-run"),
        (["evaluate", "no-such-run", "--baselines"], "no-such-run"),
        (["localize", "clip.mp4", "--model", "no-such-run"], "no-such-run"),
        (["localize", "clip.mp4"], "neither --model nor --labels"),
        (["localize", "clip.mp4", "--model", "no-such-run", "--labels", "dog"], "both --model and --labels"),
        (["localize", "clip.mp4", "--model", "no-such-run", "--clip", "clip"], "--clip beside --model"),
        (["localize", "clip.mp4", "--model", "no-such-run", "--clap", "clap"], "--clap beside --model"),
        (["localize", "clip.mp4", "--labels", "dog", "--audio-weights", "a"], "--audio-weights beside --labels"),
        (["localize", "clip.mp4", "--labels", "dog", "--visual-weights", "w.h5"], "--visual-weights beside --labels"),
        (["localize", "clip.mp4", "--labels", ""], "no labels"),
        (["localize", "clip.mp4", "--labels", "dog, ,cat"], "label 2 of 3 is empty"),
        (["localize", "clip.mp4", "--labels", "dog, Dog"], "'Dog' is given twice"),
        (["localize", "clip.mp4", "--labels", 'dog, "cat'], "cannot be read"),
    ],
)
def test_bad_input_exits_with_2_and_three_lines(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "expected:" in error and "do this:" in error and "Traceback" not in error
    assert not list(tmp_path.iterdir()), "a refused command leaves nothing behind"


def test_an_error_survives_a_process_boundary() -> None:
    import pickle  # what multiprocessing does to an exception; nothing in avel unpickles a file

    error = pickle.loads(pickle.dumps(AvelError("found", "expected", "do")))
    assert (error.found, error.expected, error.do) == ("found", "expected", "do")


def test_ctrl_c_exits_with_130_and_says_how_to_go_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("avel.comparison.evaluate_runs", interrupted)
    assert cli.main(["evaluate", "run"]) == 130
    assert "again" in capsys.readouterr().err


def test_module_and_script_are_the_same_program() -> None:
    result = run("--version")
    assert result.returncode == 0
    assert result.stdout.startswith("avel ")


def test_mean_and_spread() -> None:
    assert mean_and_spread([0.5]) == "0.500"
    assert mean_and_spread([0.1, 0.2, 0.3]) == "0.200 +- 0.100"


def test_the_time_left_of_steps_that_take_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    drawn: list[rich.progress.Progress] = []

    class Clocked(rich.progress.Progress):
        def __init__(self, *columns: object, **options: object) -> None:
            super().__init__(*columns, **options, get_time=lambda: now, auto_refresh=False)
            drawn.append(self)

    monkeypatch.setattr(rich.progress, "Progress", Clocked)
    with console.bars() as progress:
        for done in range(5):
            progress("extract", done, 10)
            now += 100
        assert drawn[0].tasks[0].time_remaining == pytest.approx(600)


# Names of files that begin with a dash: 1,012 of AVE's ids do.


@pytest.mark.parametrize("name", ["-0abc.mp4", "-hello.mp4", "--a-b.mp4", "--12UOziMF0.mp4"])
@pytest.mark.parametrize(
    "words",
    [
        ["localize", "--model", "m"],
        ["extract", "--out", "o"],
        ["evaluate"],
        ["data", "check"],
        ["data", "render", "--out"],
    ],
    ids=" ".join,
)
def test_a_name_that_begins_with_a_dash_is_told_how_to_be_written(
    words: list[str], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).touch()
    assert cli.main([*words, "good.mp4", name, "-x.mp4"]) == 2
    told = capsys.readouterr().err
    assert f"{name} begins with a dash" in told and "`--` before names" in told and f"./{name}" in told
    assert [file.name for file in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["extract", "--clip-seconds-limit", "9", "--out", "new", "--", "--a-b.mp4"],
            "no such file or folder: --a-b.mp4",
        ),
        (
            ["localize", "--min-seconds", "1", "--model", "m", "--", "-x", "--a-b.mp4"],
            "no such run folder or checkpoint: m",
        ),
        (["evaluate", "--", "--a-b"], "no such run folder: --a-b"),
        (["data", "check", "--", "--a-b"], "--a-b is neither"),
        (["data", "compare", "--", "-a", "--b-c"], "no feature store in -a"),
        (["export-h5", "--", "--a-b", "new"], "no feature store in --a-b"),
        (["train", "--store", "s", "--out", "new", "--seeds", "-1"], "seeds -1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_after_two_dashes_a_name_is_taken_as_it_is(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 2
    assert said in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_file_with_dashes_and_one_that_is_not_utf_8_are_read(
    tiny_video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("--a-b_c.mp4", os.fsdecode(b"caf\xe9.mp4")):
        (tmp_path / name).symlink_to(tiny_video)
        assert cli.main(["extract", "--workers", "0", "--out", "store", "--", name]) == 0
        assert [clip.id for clip in open_store(tmp_path / "store").clips] == [name]


@pytest.mark.parametrize(
    "words",
    [
        ["train", "--store", "STORE", "--out", "new"],
        ["localize", "VIDEO", "--model", "m", "--truth", "TRUTH"],
        ["evaluate", "RUN", "--against", "OTHER"],
        ["data", "check", "STORE"],
    ],
    ids=" ".join,
)
def test_a_path_that_is_not_utf_8_is_a_path(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    odd = [os.fsdecode(b"\xe9") + word if word.isupper() else word for word in words]
    assert cli.main(odd) == 2
    told = capsys.readouterr().err
    assert "avel: " in told and "usage" not in told and "codec" not in told
