"""A folder of videos: taken as `avel extract` takes it, and one page over the pages of all."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from avel import cli
from avel.errors import AvelError
from avel.features.folders import videos_in
from avel.features.sources import read_source
from avel.timeline import Timeline
from avel.types import Event
from avel.web import check_index, index_page


def timeline(name: str, *events: Event, duration: float = 10.0) -> Timeline:
    probabilities = np.full((int(duration), 3), 1 / 3)
    return Timeline(name, duration, 1.0, ("dog", "bell"), probabilities, None, events, {})


def test_the_index_links_every_page_and_shows_events_in_true_proportion(tmp_path: Path) -> None:
    found = timeline("x/a <b>#1.mp4", Event("dog", 1.0, 3.0, 0.9), Event("bell", 9.0, 10.0, 0.9), duration=9.5)
    index = tmp_path / "index.html"
    index_page(
        index, [(found, tmp_path / "a <b>#1.html"), (timeline("c.mp4"), tmp_path / "c.html")], [("d.mp4", "no <sound>")]
    )
    text = index.read_text()
    assert re.findall(r'href="([^"]+\.html)"', text) == ["a%20%3Cb%3E%231.html", "c.html"]
    assert re.findall(r'<rect x="(\S+)" width="(\S+)"', text) == [("1", "2"), ("9", "0.5")]
    assert 'viewBox="0 0 9.5 1"' in text and "no event found" in text
    assert "a &lt;b&gt;#1.mp4" in text and "d.mp4: no &lt;sound&gt;" in text and "<b>" not in text
    index_page(index, [(found, tmp_path / "e.html")])  # our own is written again
    assert "e.html" in index.read_text() and '<section class="failed" hidden>' in index.read_text()
    assert "<h1>1 video</h1>" in index.read_text() and "2 events found" in index.read_text()


def test_an_index_of_somebody_else_stays(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("my home page")
    for write in (check_index, lambda path: index_page(path, [(timeline("a.mp4"), tmp_path / "a.html")])):
        with pytest.raises(AvelError, match="was not written by avel"):
            write(tmp_path / "index.html")
    assert (tmp_path / "index.html").read_text() == "my home page"


@pytest.mark.parametrize("index", ["index.html", "videos.html"])
def test_a_folder_is_localized_as_it_is_extracted(
    index: str, tmp_path: Path, tiny_video: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    videos, out = tmp_path / "videos.mp4", tmp_path / "out"  # a folder, whatever its name
    (videos / "below").mkdir(parents=True)
    shutil.copy(tiny_video, videos / "a.mp4")
    shutil.copy(tiny_video, videos / "below" / ("index.mkv" if index == "videos.html" else "b.mkv"))
    (videos / "broken.mp4").write_bytes(b"no video")
    (videos / "notes.txt").write_text("no video either")
    assert [clip.path for clip in read_source(videos)[0]] == videos_in(videos)[0]

    def find(video: Path, **_: object) -> Timeline:
        if video.name == "broken.mp4":
            raise AvelError("broken.mp4 is no video", "a video", "look")
        return timeline(str(video), Event("dog", 0.0, 1.0, 0.9), duration=3.0)

    monkeypatch.setattr(cli, "_by_model", lambda *_, **__: (find, {}))
    words = ["localize", str(videos), "--model", "run", "--out", str(out), "--formats", "json", "html"]
    assert cli.main(words) == 1
    assert f"All videos: {out / index}" in capsys.readouterr().out.replace("\n", "")
    text = (out / index).read_text()
    pages = re.findall(r'href="([^"]+\.html)"', text)
    assert len(pages) == 2 and all((out / page).is_file() for page in pages)
    assert "broken.mp4 is no video" in text
    (out / index).write_text("mine")
    monkeypatch.setattr(cli, "_by_model", lambda *_, **__: pytest.fail("work began"))
    assert cli.main(words) == 2 and (out / index).read_text() == "mine"


def test_a_folder_without_videos_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["localize", str(tmp_path), "--model", "run"]) == 2
    assert "no videos in the folder" in capsys.readouterr().err
