"""The whole way once, small: real files in, a page out; and the command line on what it made."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import blank

from avel import cli
from avel.data.table import read_table
from avel.demo import DemoResult, demo
from avel.errors import AvelError
from avel.timeline import Timeline
from avel.worlds.rendered import plan


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, DemoResult]]:
    """A demo of small pictures, few of them a second, and a narrow network."""
    out = tmp_path_factory.mktemp("demo") / "demo"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"LONG_SECONDS": (20, 20), "WIDTH": 96, "HEIGHT": 64, "FRAME_RATES": (10,)}.items():
            patch.setattr(plan, name, value)
        patch.setattr("avel.demo.WIDTH", 16)
        # In this process: workers would take longer to start than to work.
        with pytest.MonkeyPatch.context() as undrawn:
            blank(undrawn)
            result = demo(out, clips=16, long_videos=1, epochs=2, seed=4, workers=0)
        yield out, result


def test_the_table_names_networks_classifiers_and_trivial_baselines(small: tuple[Path, DemoResult]) -> None:
    out, result = small
    names = [row.name for row in result.rows]
    assert names[:3] == ["CCLN", "CCLN, audio only", "CCLN, visual only"]
    assert any("logistic" in name for name in names) and any("nearest class mean" in name for name in names)
    assert any("all background" in name for name in names) and any("majority" in name for name in names)
    assert all(0 <= row.segment_accuracy <= 1 and 0 <= row.event_f1 <= 1 for row in result.rows)
    saved = json.loads((out / "demo.json").read_text())
    assert [row["segment_accuracy"] for row in saved["rows"]] == [row.segment_accuracy for row in result.rows]
    evaluated = json.loads((out / "runs" / "ccln" / "evaluation_test.json").read_text())
    assert result.rows[0].segment_accuracy == evaluated["segment_accuracy"]


def test_the_page_and_all_it_shows_are_there(small: tuple[Path, DemoResult]) -> None:
    out, result = small
    page = result.page.read_text()
    body = re.sub(r"data:[^\"']*", "", page.split("<body")[1])  # in the letters of a picture anything may stand
    assert result.page == out / "index.html" and "CCLN, audio only" in page and "http" not in body
    assert len(list((out / "clips").glob("*.html"))) == 4
    assert len(list((out / "long").glob("*.png"))) == 1
    long_video = next((out / "long").glob("*.json"))
    assert Timeline.from_json(long_video).truth == read_table(out / "world" / "long.csv")[0].spans


@pytest.mark.slow
def test_again_it_does_nothing_over(small: tuple[Path, DemoResult]) -> None:
    out, first = small
    kept = [
        next((out / "world" / "videos").iterdir()),
        next((out / "store").glob("shard*")),
        out / "runs/ccln/run.json",
    ]
    before = [file.stat().st_mtime_ns for file in kept]
    again = demo(out, clips=16, long_videos=1, epochs=2, seed=4)
    assert [file.stat().st_mtime_ns for file in kept] == before
    assert again.rows == first.rows and again.long_f1 == first.long_f1


def test_other_settings_in_the_same_folder_are_refused(small: tuple[Path, DemoResult]) -> None:
    with pytest.raises(AvelError, match="world"):
        demo(small[0], clips=16, long_videos=1, epochs=2, seed=1)


def test_too_few_clips_for_every_class_to_be_trained_are_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(AvelError, match=r"16 clips .* 'clock'") as caught:
        demo(tmp_path / "demo", clips=16, seed=0)
    assert "--clips 40" in caught.value.do and not (tmp_path / "demo").exists()


def localize(*words: object) -> int:
    return cli.main(["localize", *map(str, words)])


def test_localize_writes_every_format_and_the_csv_trains_again(
    small: tuple[Path, DemoResult], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, result = small
    video = next((out / "world" / "long").glob("*.mp4"))
    truth = out / "world" / "long.csv"
    code = localize(video, "--model", result.model, "--out", tmp_path / "found", "--html", "--truth", truth)
    assert code == 0
    suffixes = {file.suffix for file in (tmp_path / "found").iterdir()}
    assert {".json", ".csv", ".vtt", ".txt", ".png", ".html", ".mp4"} <= suffixes
    assert "knows 9 classes: " in capsys.readouterr().out
    timeline = Timeline.from_json(tmp_path / "found" / f"{video.stem}.json")
    (clip,) = read_table(tmp_path / "found" / f"{video.stem}.csv")
    assert [span.label for span in clip.spans] == [event.label for event in timeline.events]
    assert timeline.truth == read_table(truth)[0].spans


def test_one_broken_video_is_reported_and_the_others_go_on(
    small: tuple[Path, DemoResult], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, result = small
    good = next((out / "world" / "videos").glob("*.mp4"))
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(good.read_bytes()[:5000])
    options = ["--model", result.model, "--out", tmp_path / "found"]
    assert localize(broken, good, *options) == 1
    said = capsys.readouterr()
    assert "broken.mp4" in said.err and "1 of 2 videos failed" in said.err and good.stem in said.out
    assert not list((tmp_path / "found").glob("broken*"))
    assert localize(broken, tmp_path / "nowhere.mp4", *options) == 2


def test_two_videos_of_one_name_do_not_overwrite_each_other(small: tuple[Path, DemoResult], tmp_path: Path) -> None:
    out, result = small
    good = next((out / "world" / "videos").glob("*.mp4"))
    shutil.copy(good, tmp_path / good.name)
    assert localize(good, tmp_path / good.name, "--model", result.model, "--out", tmp_path / "found") == 0
    assert len(list((tmp_path / "found").glob("*.json"))) == 2


@pytest.mark.parametrize("name", ["av1_video.mkv", "dog_audio.wav", "bird_image.jpg"])
def test_real_files_that_cannot_be_used_are_told_apart(
    name: str, small: tuple[Path, DemoResult], real_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = {"av1_video.mkv": "no audio track", "dog_audio.wav": "no video track", "bird_image.jpg": "still picture"}
    assert localize(real_data / "media" / name, "--model", small[1].model, "--out", tmp_path / "found") == 2
    said = capsys.readouterr().err
    assert expected[name] in said and "Traceback" not in said


def test_a_real_clip_from_the_wild(
    small: tuple[Path, DemoResult], real_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = real_data / "media" / "BjCEufrlXm4.mp4"
    assert localize(clip, "--model", small[1].model, "--out", tmp_path, "--html") == 0
    assert Timeline.from_json(tmp_path / "BjCEufrlXm4.json").probabilities.shape == (10, 10)
    assert "knows 9 classes: " in capsys.readouterr().out
    assert (tmp_path / "BjCEufrlXm4.html").is_file() and (tmp_path / "BjCEufrlXm4.png").is_file()


def test_features_of_another_extractor_than_the_model_s_are_refused(
    small: tuple[Path, DemoResult], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, result = small
    run = tmp_path / "run"
    shutil.copytree(result.model, run)
    description = json.loads((run / "best.json").read_text())
    description["extractors"]["visual"]["tag"] = "classical-ffffffffffff"
    (run / "best.json").write_text(json.dumps(description))
    video = next((out / "world" / "videos").glob("*.mp4"))
    assert localize(video, "--model", run, "--out", tmp_path / "found") == 2
    assert "classical-ffffffffffff" in capsys.readouterr().err
    assert cli.main(["evaluate", str(run)]) == 2
    assert "classical-ffffffffffff" in capsys.readouterr().err


def test_extract_reports_a_broken_clip_and_the_rest_go_on(
    small: tuple[Path, DemoResult], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = next((small[0] / "world" / "videos").glob("*.mp4"))
    shutil.copy(good, tmp_path / "good.mp4")
    (tmp_path / "broken.mp4").write_bytes(good.read_bytes()[:5000])
    table = tmp_path / "clips.csv"
    table.write_text("video,start,end,label\ngood.mp4,1,3,bell\nbroken.mp4,0,2,dog\n")
    assert cli.main(["extract", str(table), "--out", str(tmp_path / "store")]) == 1
    said = capsys.readouterr()
    assert "1 clip extracted" in said.out and "failed: broken.mp4" in said.err
    (failure,) = (json.loads(line) for line in (tmp_path / "store" / "failures.jsonl").read_text().splitlines())
    assert failure["id"] == "broken.mp4" and failure["cause"]
    table.write_text("video,start,end,label\nbroken.mp4,0,2,dog\n")
    assert cli.main(["extract", str(table), "--out", str(tmp_path / "none")]) == 2


def test_train_evaluate_and_spread_from_the_command_line(
    small: tuple[Path, DemoResult], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "runs"
    words = ["--store", str(small[0] / "store"), "--out", str(run), "--epochs", "1", "--options.width", "16"]
    assert cli.main(["train", *words, "--options.heads", "2", "--seeds", "0", "1"]) == 0
    said = capsys.readouterr().out
    assert "seed 0: val accuracy" in said and "+-" in said and f"avel evaluate {run}" in said
    assert "trivial baseline on val, all background: 0." in said
    assert cli.main(["evaluate", str(run), "--split", "val"]) == 0
    said = capsys.readouterr().out
    assert "segment accuracy" in said and "+-" in said and "trivial baseline, all background" in said
    assert (run / "seed-1" / "evaluation_val.json").is_file()
