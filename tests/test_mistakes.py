"""A user's mistakes at every verb: exit code 2, what was found, what is right, what to do; never a traceback."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic import write_store

from avel import cli
from avel.config import TrainConfig
from avel.errors import AvelError
from avel.files import check_folder, make_folder

OUT_OF_EVERY_VERB = [
    "demo --out",
    "data render --out",
    "data simulate --out",
    "data import-ave . --out",
    "data compare one other --out",
    "extract clips.csv --out",
    "export-h5 store",
    "train --store store --out",
    "localize clip.mp4 --model run --out",
]


def a_file(folder: Path) -> tuple[Path, str]:
    (folder / "file").write_text("mine")
    return folder / "file", "is a file"


def under_a_file(folder: Path) -> tuple[Path, str]:
    return a_file(folder)[0] / "out", "cannot be a folder"


def behind_a_dead_link(folder: Path) -> tuple[Path, str]:
    (folder / "link").symlink_to(folder / "nowhere")
    return folder / "link" / "out", "a link that leads nowhere"


def a_name_too_long(folder: Path) -> tuple[Path, str]:
    return folder / ("x" * 256) / "out", "more than 255 bytes"


@pytest.mark.parametrize("place", [a_file, under_a_file, behind_a_dead_link, a_name_too_long])
@pytest.mark.parametrize("words", OUT_OF_EVERY_VERB)
def test_an_out_that_cannot_be_a_folder_is_refused_before_any_work(
    words: str,
    place: Callable[[Path], tuple[Path, str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, said = place(tmp_path)
    there = sorted(tmp_path.iterdir())
    assert cli.main([*words.split(), str(out)]) == 2
    error = capsys.readouterr().err
    assert said in error and "do this:" in error and "Traceback" not in error
    assert sorted(tmp_path.iterdir()) == there
    for refused in (check_folder, make_folder):
        with pytest.raises(AvelError, match=said):
            refused(out)


def test_a_folder_that_can_be_made_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in ("a.b/c", "..", "."):
        check_folder(path)
    assert not list(tmp_path.iterdir())
    make_folder("a.b/c")
    make_folder("a.b/c")
    assert (tmp_path / "a.b" / "c").is_dir()


def test_a_folder_that_may_not_be_written_to_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write anywhere
    with pytest.raises(AvelError, match=f"{tmp_path} cannot be written to"):
        check_folder(tmp_path / "new" / "out")


def test_settings_take_text_for_paths_and_numbers_of_numpy() -> None:
    config = TrainConfig("store", "runs/mine", seed=np.int64(3), learning_rate=np.float32(0.5), feature_noise=1)  # type: ignore[arg-type]
    assert (config.store, config.out) == (Path("store"), Path("runs/mine"))
    assert (type(config.seed), config.seed, config.learning_rate) == (int, 3, 0.5)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ({"store": 3}, "a value of type Path"),
        ({"out": None}, "a value of type Path"),
        ({"epochs": "3"}, "a value of type int"),
        ({"epochs": 2.5}, "a value of type int"),
        ({"drop_last": "no"}, "a value of type bool"),
        ({"task": "both"}, "'full' or 'weak' or 'cml'"),
        ({"options": [1]}, "a value of type dict"),
        ({"device": None}, "a value of type str"),
    ],
)
def test_a_setting_of_the_wrong_type_is_refused_by_name(setting: dict[str, Any], expected: str) -> None:
    with pytest.raises(AvelError) as caught:
        TrainConfig(**({"store": Path("store"), "out": Path("run")} | setting))
    ((name, value),) = setting.items()
    assert caught.value.found == f"{name} = {value!r}" and caught.value.expected == expected


@pytest.fixture
def odd_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of files that are not what they seem, to work in."""
    monkeypatch.chdir(tmp_path)
    for folder in ("folder.csv", "run.v1"):
        Path(folder).mkdir()
    for name, content in (
        ("empty", b""),
        ("empty.csv", b""),
        ("latin.yaml", "model: \xe9".encode("latin-1")),
        ("broken.yaml", b"epochs: [1"),
        ("unknown.yaml", b"colour: red"),
        ("list.yaml", b"- 1"),
    ):
        Path(name).write_bytes(content)


@pytest.mark.parametrize(
    "words",
    [
        "extract folder.csv --out new",
        "extract empty --out new",
        "extract empty.csv --out new",
        "train --config latin.yaml --store s --out new",
        "train --config broken.yaml --store s --out new",
        "train --config unknown.yaml --store s --out new",
        "train --config list.yaml --store s --out new",
        "train --config run.v1 --store s --out new",
        "train --store empty --out new",
        "train --store s --out new --epochs 0",
        "train --store s --out new --device banana",
        "train --store s --out new --seeds 0 0",
        "train --store s --out new --seeds 0 -1",
        "evaluate empty",
        "evaluate run.v1",
        "evaluate folder.csv --baselines",
        "evaluate empty --baselines",
        "localize empty --model run.v1",
        "localize folder.csv --model run.v1",
        "localize missing --model empty",
        "localize empty --model run.v1 --truth folder.csv",
        "localize empty --model run.v1 --device banana",
        "localize empty --labels dog --threshold nan",
        "data check empty",
        "data check folder.csv",
        "data compare empty folder.csv",
        "data import-ave empty --dry-run",
        "data import-ave run.v1 --out new",
        "data render --clips -1 --out new",
        "data simulate --videos 0 --out new",
        "demo --clips 0 --out new",
        "export-h5 empty new",
    ],
)
def test_wrong_kinds_of_paths_and_numbers_are_told(
    words: str, odd_paths: None, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code: int | str | None = cli.main(words.split())
    except SystemExit as stop:  # of the parser
        code = stop.code
    told = capsys.readouterr()
    assert code == 2 and "Traceback" not in told.err and told.err.strip()


def test_seeds_named_twice_are_refused_before_the_store_is_looked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--store", "nowhere", "--out", "new", "--seeds", "0", "1", "0"]) == 2
    assert "seeds 0, 1, 0" in capsys.readouterr().err


@pytest.fixture
def inputs(tmp_path: Path, tiny_video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stores and lists of which each has something that a verb refuses, to work in."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(tiny_video, "a.mp4")
    rows = {"good": "a.mp4,0,1,dog,train", "bad": "a.mp4,0,x,dog,train", "missing": "b.mp4,0,1,dog,train"}
    for name, row in rows.items():
        Path(f"{name}.csv").write_text(f"video,start,end,label,split\n{row}\n")
    Path("list.txt").write_text("b.mp4\n")
    Path("clips.xlsx").write_bytes(b"PK\x03\x04" + bytes(99))
    Path("empty").mkdir()
    write_store(Path("store"))
    write_store(Path("unlabelled"), labelled=False)


@pytest.mark.parametrize(
    "words",
    [
        "extract bad.csv",
        "extract good.csv bad.csv",
        "extract missing.csv",
        "extract list.txt",
        "extract clips.xlsx",
        "extract empty",
        "extract good.csv --visual nonsense",
        "extract good.csv --visual-options.nonsense 1",
        "extract good.csv --device banana",
        "extract good.csv --workers -1",
        "extract good.csv --engine ray",
        "train --store empty",
        "train --store unlabelled",
        "train --store store",
        "train --store store --window 6 --model nonsense",
        "train --store store --window 6 --options.nonsense 1",
        "train --store store --window 6 --options.heads 7",
        "localize a.mp4 --model empty",
        "localize a.mp4 --model store --truth bad.csv",
        "localize a.mp4 --labels dog --clip empty",
        "data import-ave empty",
        "data render --clips -1",
        "data render --clips 2 --workers -1",
        "data simulate --videos 0",
        "data simulate --videos 40 --set-version 9",
        "data compare store empty",
        "demo --clips 0",
        "demo --clips 4 --workers -1",
    ],
)
def test_a_refusal_before_any_work_leaves_no_folder(
    words: str, inputs: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("avel.workers.find_spec", lambda _: None)  # no Ray here
    assert cli.main([*words.split(), "--out", "new"]) == 2
    assert "do this:" in capsys.readouterr().err and not Path("new").exists()
