"""Nothing of the user's is overwritten or deleted, whatever it is called and wherever results are written."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from synthetic import write_store

import avel.present
from avel import cli
from avel.config import TrainConfig
from avel.data.ave.export import export_h5
from avel.data.store import open_store
from avel.demo import demo
from avel.errors import AvelError
from avel.evaluation import evaluate
from avel.features.extract import extract
from avel.present import file_names
from avel.training import train
from avel.worlds.rendered.render import render

pytestmark = pytest.mark.usefixtures("blank_pictures")

Clips = Callable[[Path, int], Path]
USUAL = {".json", ".csv", ".vtt", ".txt", ".png"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tiny_clips: Clips) -> Path:
    """A run folder: one epoch on four clips."""
    folder = tmp_path_factory.mktemp("model")
    table = tiny_clips(folder / "clips", 4)
    table.write_text(table.read_text().replace("clip3.mp4,0,1,dog,train", "clip3.mp4,0,1,dog,val"))
    extract(table, folder / "store", workers=0)
    options = {"width": 16, "heads": 2}
    config = TrainConfig(
        store=folder / "store",
        out=folder / "run",
        window=2,
        epochs=1,
        batch_size=2,
        options=options,
        device="cpu",
        threads=1,
    )
    return train(config).folder


@pytest.fixture
def talk(tmp_path: Path, tiny_video: Path) -> Path:
    """A video called talk.mp4, alone in its folder."""
    (tmp_path / "videos").mkdir()
    return Path(shutil.copy(tiny_video, tmp_path / "videos" / "talk.mp4"))


def localize(*words: object) -> int:
    return cli.main(["localize", *map(str, words)])


def state(folder: Path) -> dict[str, tuple[int, int]]:
    return {file.name: (file.stat().st_ino, file.stat().st_mtime_ns) for file in folder.iterdir()}


# --- localize ---


def test_a_corrected_csv_stays_and_is_named(
    model: Path, talk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "found"
    words = [talk, "--model", model, "--out", out]
    assert localize(*words) == 0
    written = (out / "talk.csv").read_text()
    (out / "talk.csv").write_text(f"{written}{written.splitlines()[-1].split(',')[0]},0,1,corrected\n")
    before = state(out)
    assert localize(*words) == 2
    said = capsys.readouterr().err
    assert "talk.csv already exists" in said and "--overwrite" in said and "talk.json" not in said
    assert state(out) == before
    assert localize(*words, "--overwrite") == 0
    assert (out / "talk.csv").read_text() == written


def test_again_it_keeps_what_is_there_and_writes_what_is_missing(
    model: Path, talk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "found"
    words = ["--model", model, "--out", out]
    assert localize(talk, *words) == 0
    before = state(out)
    capsys.readouterr()
    monkeypatch.chdir(talk.parent)
    assert localize("talk.mp4", *words) == 0  # the same file by another path
    assert "Already there: " in capsys.readouterr().out and state(out) == before
    (out / "talk.vtt").unlink()
    assert localize("talk.mp4", *words, "--html") == 0
    now = state(out)
    assert now.keys() == before.keys() | {"talk.html", "talk.clip.mp4"}
    assert all(now[name] == before[name] for name in before if name != "talk.vtt")
    assert localize("talk.mp4", *words, "--html") == 0
    assert state(out) == now
    (out / "talk.html").write_text("mine")
    assert localize("talk.mp4", *words, "--html") == 2
    assert (out / "talk.html").read_text() == "mine"


def test_other_settings_or_another_video_do_not_replace_what_is_there(
    model: Path, talk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "found"
    words = ["--model", model, "--out", out]
    assert localize(talk, *words) == 0
    before = state(out)
    assert localize(talk, *words, "--threshold", "0.5") == 2
    assert all(f"talk{suffix}" in capsys.readouterr().err for suffix in [".json"])
    other = Path(shutil.copy(talk, tmp_path / "talk.mkv"))
    assert localize(other, *words) == 2
    assert state(out) == before
    assert localize(talk, *words, "--threshold", "0.5", "--overwrite") == 0
    assert json.loads((out / "talk.json").read_text())["threshold"] == 0.5


def test_the_user_s_own_files_beside_the_video_stay_and_other_videos_go_on(
    model: Path, talk: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = talk.parent
    (folder / "talk.vtt").write_text("WEBVTT\n\nmine\n")
    (folder / "talk.txt").symlink_to(folder / "nowhere")
    other = Path(shutil.copy(talk, folder / "other.mp4"))
    assert localize(talk, other, "--model", model, "--out", folder) == 1
    said = capsys.readouterr().err
    assert "talk.txt" in said and "talk.vtt already exist" in said and "1 of 2 videos failed" in said
    assert (folder / "talk.vtt").read_text() == "WEBVTT\n\nmine\n" and (folder / "talk.txt").is_symlink()
    assert {file.name for file in folder.glob("talk.*")} == {"talk.mp4", "talk.vtt", "talk.txt"}
    assert {file.suffix for file in folder.glob("other.*")} == {*USUAL, ".mp4"}


def test_a_conflict_is_found_before_any_work(model: Path, talk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_work(*_: object, **__: object) -> None:
        raise AssertionError("a video was read")

    monkeypatch.setattr("avel.features.segments.extract_clip", no_work)
    (talk.parent / "talk.csv").touch()
    assert localize(talk, "--model", model, "--out", talk.parent) == 2
    assert (talk.parent / "talk.csv").read_bytes() == b""


def test_files_of_a_video_appear_together_or_not_at_all(
    model: Path, talk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise AvelError("the video cannot be read any more", "a video", "look for it")

    monkeypatch.setattr(avel.present, "timeline_picture", failing)
    assert localize(talk, "--model", model, "--out", tmp_path / "found") == 2
    assert not os.listdir(tmp_path / "found")


def test_a_page_without_the_picture_as_a_file(model: Path, talk: Path, tmp_path: Path) -> None:
    words = [talk, "--model", model, "--out", tmp_path / "found", "--formats", "html"]
    assert localize(*words) == 0
    assert sorted(os.listdir(tmp_path / "found")) == ["talk.clip.mp4", "talk.html"]
    assert "data:image/png" in (tmp_path / "found" / "talk.html").read_text()
    assert localize(*words) == 2  # without its JSON nothing says whose page it is


def test_a_file_name_of_250_bytes_and_the_videos_after_it(model: Path, talk: Path, tmp_path: Path) -> None:
    long = Path(shutil.copy(talk, talk.parent / ("é" * 123 + ".mp4")))
    assert len(os.fsencode(long.name)) == 250
    out = tmp_path / "found"
    assert localize(long, talk, "--model", model, "--out", out, "--html") == 0
    assert len(list(out.glob("*.json"))) == 2 and (out / "talk.json").is_file()
    assert len(list(out.glob("é*"))) == 6 and len(list(out.glob("*.clip.mp4"))) == 2


@pytest.mark.parametrize(
    ("videos", "names"),
    [
        (["x.mp4", "x.mkv"], ["x-1", "x-2"]),
        (["x/a.mp4", "y/a.mp4", "a-1.mp4"], ["a-2", "a-3", "a-1"]),
        (["x/a.mp4", "y/a.mp4", "A-1.mp4"], ["a-2", "a-3", "A-1"]),
        (["Talk.mp4", "talk.mkv"], ["Talk-1", "talk-2"]),
        (["caf\u00e9.mp4", "cafe\u0301.mp4"], ["caf\u00e9-1", "cafe\u0301-2"]),
        (["a.mp4", "a.label-studio.mp4"], ["a", "a.label-studio-1"]),
    ],
)
def test_no_two_videos_share_a_name(videos: list[str], names: list[str]) -> None:
    assert file_names([Path(video) for video in videos]) == names


def test_long_names_are_cut_between_characters_and_stay_apart() -> None:
    stems = ["é" * 120 + "a", "é" * 120 + "b", "x" + "é" * 120, os.fsdecode(b"\xff" * 240)]
    names = file_names([Path(f"{stem}.mp4") for stem in stems])
    assert len(set(names)) == 4
    starts = ["é", "é", "x", "%FF"]
    assert all(
        190 < len(name.encode()) <= 200 and name.startswith(start) for name, start in zip(names, starts, strict=True)
    )


# --- extract ---


def test_a_folder_called_parts_keeps_its_videos(
    tiny_clips: Clips, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_clips(tmp_path / "parts", 2)
    before = state(tmp_path / "parts")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["extract", "parts", "--out", "."]) == 2
    assert "is inside the output folder" in capsys.readouterr().err and os.listdir(tmp_path) == ["parts"]
    assert cli.main(["extract", "parts/clips.csv", "--out", ".", "--workers", "0"]) == 0
    assert state(tmp_path / "parts") == before and len(open_store(tmp_path).clips) == 2


def test_a_work_folder_that_is_not_ours_stays(tiny_clips: Clips, tmp_path: Path) -> None:
    table = tiny_clips(tmp_path / "clips", 1)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "precious").touch()
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / ".avel-parts").symlink_to(tmp_path / "theirs")
    with pytest.raises(AvelError, match="was not made by avel"):
        extract(table, tmp_path / "store", workers=0)
    assert os.listdir(tmp_path / "theirs") == ["precious"]


def test_only_our_own_shards_are_removed(tiny_clips: Clips, tmp_path: Path) -> None:
    table, out = tiny_clips(tmp_path / "clips", 2), tmp_path / "store"
    out.mkdir()
    theirs = ["shard-of-glass.safetensors", "shard-0123456789abcdef.safetensors", ".shard-mine.safetensors.tmp"]
    for name in theirs:
        (out / name).write_text(name)
    extract(table, out, workers=0)
    former = {shard["name"] for shard in json.loads((out / "store.json").read_text())["shards"]}
    table.write_text("\n".join(table.read_text().splitlines()[:2]) + "\n")
    extract(table, out, workers=0)
    now = {shard["name"] for shard in json.loads((out / "store.json").read_text())["shards"]}
    assert set(os.listdir(out)) == {*theirs, "store.json", *now} and not former & now
    assert all((out / name).read_text() == name for name in theirs)


def test_a_failures_file_of_somebody_else_is_not_replaced(tiny_clips: Clips, tmp_path: Path) -> None:
    table = tiny_clips(tmp_path / "clips", 1)
    (tmp_path / "failures.jsonl").write_text('{"day": 1}\n')
    with pytest.raises(AvelError, match=r"failures\.jsonl was not written by avel"):
        extract(table, tmp_path, workers=0)
    assert (tmp_path / "failures.jsonl").read_text() == '{"day": 1}\n'


# --- train and evaluate ---


def test_a_stranger_s_run_folder_makes_evaluate_write_nowhere_else(model: Path, tmp_path: Path) -> None:
    run, victim, pictures = tmp_path / "run", tmp_path / "victim", tmp_path / "pictures"
    shutil.copytree(model, run)
    shutil.rmtree(run / "plots", ignore_errors=True)
    victim.write_text("precious")
    names = ["evaluation_test.json", "predictions_test.npz", "comparison.json"]
    for name in names:
        (run / f".{name}.tmp").symlink_to(victim)
    evaluate(run)
    assert victim.read_text() == "precious" and (run / "evaluation_test.json").is_file()

    shutil.move(run / "plots", pictures)
    (run / "plots").symlink_to(pictures)
    before = state(pictures)
    with pytest.raises(AvelError, match="plots is a link"):
        evaluate(run)
    assert state(pictures) == before


def test_evaluate_replaces_its_own_scores_and_no_other_file(model: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(model, tmp_path / "run"))
    evaluate(run)
    first = (run / "evaluation_test.json").read_bytes()
    evaluate(run)
    assert (run / "evaluation_test.json").read_bytes() == first
    (run / "evaluation_test.json").write_text("my notes")
    with pytest.raises(AvelError, match="was not written by avel"):
        evaluate(run)
    assert (run / "evaluation_test.json").read_text() == "my notes"


# --- data, demo, export ---


def test_a_comparison_that_is_there_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_store(tmp_path / "one")
    out = tmp_path / "out"
    words = ["data", "compare", str(tmp_path / "one"), str(tmp_path / "one"), "--out", str(out)]
    assert cli.main(words) == 0
    (out / "comparison.json").write_text("mine")
    assert cli.main(words) == 2
    assert "--overwrite" in capsys.readouterr().err and (out / "comparison.json").read_text() == "mine"
    assert cli.main([*words, "--overwrite"]) == 0
    assert json.loads((out / "comparison.json").read_text())


@pytest.mark.parametrize("name", ["clips.csv", "long.csv", "videos/mine.mkv", "long/mine.mp4"])
def test_a_world_is_not_rendered_over_the_user_s_files(name: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(AvelError, match=r"but no world\.json"):
        render(tmp_path, clips=1, long_videos=0, seconds=2, workers=1)
    assert (tmp_path / name).read_text() == "mine" and not (tmp_path / "world.json").exists()


def test_labels_of_a_world_that_were_changed_stay(tmp_path: Path) -> None:
    table = render(tmp_path, clips=1, long_videos=0, seconds=2, workers=1)
    first = table.stat().st_mtime_ns
    render(tmp_path, clips=1, long_videos=0, seconds=2, workers=1)
    assert table.stat().st_mtime_ns == first
    corrected = f"{table.read_text().splitlines()[0]}\nvideos/clip_0000.mp4,0,1,mine,train\n"
    table.write_text(corrected)
    with pytest.raises(AvelError, match="was changed since it was written"):
        render(tmp_path, clips=1, long_videos=0, seconds=2, workers=1)
    assert table.read_text() == corrected


def test_a_demo_goes_to_a_folder_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("mine")
    with pytest.raises(AvelError, match=r"holds index\.html but no demo\.json"):
        demo(tmp_path)
    (tmp_path / "demo.json").write_text('{"format": "mine"}')
    with pytest.raises(AvelError, match="was not written by avel"):
        demo(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["demo.json", "index.html"]


def test_an_export_leaves_hidden_folders_of_the_user_beside_it(tmp_path: Path) -> None:
    """Work folders once had these names, and were removed."""
    write_store(tmp_path / "store", segments=10)
    for name in (".h5.tmp", ".h5.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "precious").touch()
    export_h5(tmp_path / "store", tmp_path / "h5", files=["labels.h5"])
    assert all((tmp_path / name / "precious").exists() for name in (".h5.tmp", ".h5.old"))
