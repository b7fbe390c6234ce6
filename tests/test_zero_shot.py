"""Words for any video: agreement against plain Python with scripted encoders, labels and prompts, and the whole way."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from media import write_video
from tiny_models import needs_transformers, write_clap, write_clip

import avel
from avel import cli
from avel.errors import AvelError
from avel.features.huggingface import CLAP_WEIGHTS, CLIP_WEIGHTS
from avel.present import USUAL_FORMATS, present
from avel.timeline import Timeline
from avel.zero_shot import (
    Prompts,
    _only_agreed,
    agree,
    check_labels,
    localize_words,
    parse_labels,
    where,
    word_probabilities,
)

LABELS = ("dog barking", "church bell", "train horn")
PROMPTS = Prompts(("a photo of {}.", "{} at work."), ("a sound of {}.",), ("nothing to see.",), ("silence.", "noise."))
SECONDS = 0.25  # of a segment: twelve of them in the tiny video
SCALES = {"visual": 3.0, "audio": 3.4}  # of cosines


class Encoder:
    """Says of each segment in turn what it was told to. Every label has a direction of its own, as has background."""

    def __init__(self, kind: str, script: np.ndarray) -> None:
        self.options: dict[str, object] = {}
        self.kind, self.name, self.tag = kind, f"stub{kind}", f"stub{kind}-0"
        self.word_scale, self.dim = SCALES[kind], script.shape[1]
        self.frame_size, self.frames_per_segment, self.grid, self.sample_rate = 8, 2, (2, 3), 1000
        self.script = script / np.linalg.norm(script, axis=1, keepdims=True)
        self.done = 0
        self.read: list[str] = []

    def embed_words(self, texts: list[str]) -> np.ndarray:
        self.read = list(texts)
        known = [*LABELS, "nothing to see.", "silence.", "noise."]
        return np.eye(self.dim)[[next(place for place, word in enumerate(known) if word in text) for text in texts]]

    def next(self, number: int) -> np.ndarray:
        rows = self.script[self.done : self.done + number]
        self.done += number
        return rows.astype(np.float32)

    def embed_frames(self, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        assert frames.shape[1:] == (8, 8, 3) and frames.dtype == np.uint8
        patches = np.zeros((len(frames) // 2, 2, 3, self.dim), np.float32)
        for label in range(len(LABELS)):
            patches[:, label % 2, label, label] = 0.9  # each label has a cell of its own
        return self.next(len(patches)), patches

    def __call__(self, waveform: np.ndarray) -> np.ndarray:
        assert waveform.shape[1] in (250, 1000)
        return self.next(len(waveform))


def encoders(seed: int) -> tuple[Encoder, Encoder]:
    """That agree now and then."""
    rng = np.random.default_rng(seed)
    shared = np.repeat(np.eye(6)[rng.integers(0, 4, 6)], 2, axis=0)
    return tuple(Encoder(kind, 0.6 * shared + rng.random((12, 6)) * 0.7) for kind in ("visual", "audio"))


def softmax(values: list[float]) -> list[float]:
    powers = [math.exp(value) for value in values]
    return [power / sum(powers) for power in powers]


def oracle(visual: Encoder, audio: Encoder, threshold: float):
    """What the docs say, word by word: rows of probabilities, and the label of each segment or None."""
    rows, found = [], []
    for picture, sound in zip(visual.script.tolist(), audio.script.tolist(), strict=True):
        look = softmax([3.0 * value for value in picture[:4]])  # three labels and one background prompt
        hear = softmax([3.4 * value for value in (*sound[:3], *sound[4:6])])  # and two of them
        hear = [*hear[:3], hear[3] + hear[4]]
        both = [min(look[label], hear[label]) for label in range(3)]
        rows.append([*both, 1 - sum(both)])
        best = max(range(3), key=lambda label: both[label])
        sure = look[best] >= threshold and hear[best] >= threshold
        alike = look.index(max(look)) == hear.index(max(hear)) == best
        found.append(best if sure and alike and both[best] > 1 - sum(both) else None)
    return rows, found


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.4, 0.5])
@pytest.mark.parametrize("seed", range(4))
def test_against_the_oracle(tiny_video: Path, seed: int, threshold: float) -> None:
    visual, audio = encoders(seed)
    timeline = localize_words(
        tiny_video, LABELS, clip=visual, clap=audio, threshold=threshold, segment_seconds=SECONDS, prompts=PROMPTS
    )
    rows, found = oracle(visual, audio, threshold)
    np.testing.assert_allclose(timeline.probabilities, rows, atol=1e-6)
    np.testing.assert_allclose(timeline.probabilities.sum(1), 1, atol=1e-12)
    labels = [None] * 12
    for event in timeline.events:
        first, last = round(event.start / SECONDS), round(event.end / SECONDS)
        assert event.end <= timeline.duration + 1e-9
        labels[first:last] = [LABELS.index(event.label)] * (last - first)
        assert event.score == pytest.approx(np.mean([row[labels[first]] for row in rows[first:last]]), abs=1e-6)
        assert event.score >= threshold
    assert labels == found


def test_a_picture_that_stands_still_for_minutes(tmp_path: Path) -> None:
    """Its features are taken again without a look, and what was seen stays beside what is heard at the time."""
    path = write_video(tmp_path / "a.mkv", times=[0, 0.5, 20, 20.5], seconds=21, audio_codec="pcm_s16le", size=(16, 16))
    shown = np.eye(6)[[0] * 4 + [1] * 4 + [2]]  # seconds 0 to 3; 4 to 7, as are those to 19; second 20
    visual, audio = Encoder("visual", 5 * shown), Encoder("audio", 5 * np.eye(6)[[0] * 4 + [1] * 16 + [2]])
    timeline = localize_words(path, LABELS, clip=visual, clap=audio, threshold=0.3, prompts=PROMPTS)
    assert [(event.label, event.start, round(event.end)) for event in timeline.events] == [
        ("dog barking", 0, 4),
        ("church bell", 4, 20),
        ("train horn", 20, 21),
    ]
    assert visual.done == 9


def test_the_oracle_finds_something_at_each_threshold() -> None:
    for threshold in (0.0, 0.3, 0.4, 0.5):
        everything = [oracle(*encoders(seed), threshold)[1] for seed in range(4)]
        labels = [label for found in everything for label in found]
        assert {*labels} >= {None, 0} and len({*labels}) > 2


def test_the_timeline(tiny_video: Path, tmp_path: Path) -> None:
    visual, audio = encoders(0)
    stages = []
    timeline = localize_words(
        tiny_video, "dog barking, church bell, train horn", clip=visual, clap=audio, threshold=0.3, min_seconds=0.5,
        segment_seconds=SECONDS, prompts=PROMPTS, progress=lambda *step: stages.append(step),
    )  # fmt: skip
    assert timeline.classes == LABELS and timeline.video == str(tiny_video)
    assert (timeline.threshold, timeline.min_seconds, timeline.segment_seconds) == (0.3, 0.5, SECONDS)
    assert timeline.tags["visual"] == "stubvisual-0" and timeline.tags["audio"] == "stubaudio-0"
    assert timeline.tags["task"] == "zero-shot" and timeline.tags["prompts"].startswith("prompts-")
    assert stages and {stage for stage, *_ in stages} == {"decode"}
    assert all(event.end - event.start >= 0.5 for event in timeline.events)
    # where: each label lights its own cell
    assert timeline.attention.shape == (12, 2, 3)
    np.testing.assert_allclose(timeline.attention.sum((1, 2)), 1)
    for heat, row in zip(timeline.attention, timeline.probabilities, strict=True):
        label = int(row[:-1].argmax())
        assert np.unravel_index(heat.argmax(), heat.shape) == (label % 2, label)
    # the prompts: every label in every template, then the background
    assert visual.read[:3] == ["a photo of dog barking.", "dog barking at work.", "a photo of church bell."]
    assert visual.read[-1] == "nothing to see." and len(visual.read) == 7
    assert audio.read == [f"a sound of {label}." for label in LABELS] + ["silence.", "noise."]
    timeline.to_json(tmp_path / "clip.json")
    again = Timeline.from_json(tmp_path / "clip.json")
    assert (again.classes, again.tags, len(again.events)) == (LABELS, timeline.tags, len(timeline.events))


def test_picture_and_sound_must_each_put_most_on_the_label(tiny_video: Path) -> None:
    """The bell is what they share most, but the picture would rather have a train: no event, however low the bar."""
    look, hear = [0.1, 0.6, 0.62, -0.3, 0, 0.4], [0.1, 0.8, 0.4, 0, -0.25, -0.2]
    visual, audio = (Encoder(kind, np.array([row] * 12)) for kind, row in (("visual", look), ("audio", hear)))
    options = {"clip": visual, "clap": audio, "threshold": 0.0, "segment_seconds": SECONDS, "prompts": PROMPTS}
    timeline = localize_words(tiny_video, LABELS, **options)
    assert (timeline.probabilities.argmax(-1) == 1).all() and timeline.events == ()
    visual, audio = (Encoder(kind, np.array([hear] * 12)) for kind in ("visual", "audio"))
    (event,) = localize_words(tiny_video, LABELS, **options | {"clip": visual, "clap": audio}).events
    assert event.label == "church bell" and event.start == 0


def test_prompts_have_a_tag(tiny_video: Path) -> None:
    tags = set()
    for prompts in (PROMPTS, Prompts(("{}",), PROMPTS.sound, PROMPTS.no_picture, PROMPTS.no_sound)):
        visual, audio = encoders(0)
        options = {"clip": visual, "clap": audio, "segment_seconds": SECONDS}
        tags.add(localize_words(tiny_video, LABELS, prompts=prompts, **options).tags["prompts"])
    assert len(tags) == 2


def test_a_label_is_the_mean_of_its_sentences(tiny_video: Path) -> None:
    """A dog's two sentences lie at right angles to one another: what looks like either looks like half of both."""

    class Reader(Encoder):
        def embed_words(self, texts: list[str]) -> np.ndarray:
            return np.eye(self.dim)[[0 if "photo" in text else 1 if "work" in text else 2 for text in texts]] * 1.0

    visual, audio = (Reader(kind, np.tile([1.0, 0, 0, 0], (12, 1))) for kind in ("visual", "audio"))
    prompts = Prompts(PROMPTS.picture, PROMPTS.picture, ("none",), ("none",))
    timeline = localize_words(tiny_video, ["dog"], clip=visual, clap=audio, segment_seconds=SECONDS, prompts=prompts)
    np.testing.assert_allclose(timeline.probabilities[:, 0], softmax([3.0 * math.sqrt(0.5), 0])[0], atol=1e-6)


def test_seen_alone_or_heard_alone_is_background() -> None:
    dog, bell, nothing = np.eye(3)
    seen, heard = np.array([dog, dog, nothing, dog]), np.array([dog, bell, bell, nothing])
    np.testing.assert_array_equal(agree(seen, heard), [dog, nothing, nothing, nothing])


def test_agreement_by_hand() -> None:
    found = agree(np.array([[0.7, 0.2, 0.1]]), np.array([[0.6, 0.1, 0.3]]))
    np.testing.assert_allclose(found, [[0.6, 0.1, 0.3]])


@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 10_000))
def test_probabilities_are_probabilities(num_labels: int, num_background: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(5, 8))
    words = rng.normal(size=(num_labels + num_background, 8))
    seen, heard = (word_probabilities(values, words, num_labels, scale) for scale in (1.0, 100.0))
    joint = agree(seen, heard)
    for found in (seen, heard, joint):
        assert found.shape == (5, num_labels + 1) and (found >= 0).all()
        np.testing.assert_allclose(found.sum(1), 1)
    # at one half and above, a label that reaches the threshold is the first choice of both
    for row in range(5):
        label = int(joint[row, :-1].argmax())
        if joint[row, label] > 0.5:
            assert seen[row].argmax() == heard[row].argmax() == joint[row].argmax() == label


def test_where_by_hand() -> None:
    cosines = np.zeros((1, 1, 2, 2))
    cosines[0, 0, :, 1] = [0.5, 0.5 + math.log(3) / 10]
    np.testing.assert_allclose(where(cosines, np.array([1]), 10.0), [[[0.25, 0.75]]])
    np.testing.assert_allclose(where(cosines, np.array([0]), 10.0), [[[0.5, 0.5]]])


# labels


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("dog barking, church bell, train horn", LABELS),
        ("dog", ("dog",)),
        ('  dog ,"drum, snare",  church\n bell ', ("dog", "drum, snare", "church bell")),
        ('"a ""good"" dog", cat', ('a "good" dog', "cat")),
        ("dog's bark, {braces}", ("dog's bark", "{braces}")),
    ],
)
def test_parse_labels(text: str, labels: tuple[str, ...]) -> None:
    assert parse_labels(text) == labels


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no labels"),
        (" , ", "no labels"),
        ("dog,,cat", "label 2 of 3 is empty"),
        ("dog, cat,", "label 3 of 3 is empty"),
        ("dog, Dog", "'Dog' is given twice"),
        ("church  bell, church bell", "is given twice"),
        ("dog, Background", "the label 'Background'"),
        ('dog, "drum, snare', "cannot be read"),
        (",".join(f"label {index}" for index in range(101)), "101 labels"),
    ],
)
def test_labels_that_cannot_be_used(text: str, told: str) -> None:
    with pytest.raises(AvelError) as caught:
        parse_labels(text)
    assert told in caught.value.found and caught.value.expected and caught.value.do


def test_check_labels() -> None:
    assert check_labels([" dog ", "church  bell"]) == ("dog", "church bell")
    assert len(check_labels([f"label {index}" for index in range(100)])) == 100
    with pytest.raises(AvelError, match="no labels"):
        check_labels([])


@pytest.mark.parametrize(
    "wrong",
    [
        {"threshold": 1.5}, {"threshold": math.nan}, {"min_seconds": -1}, {"min_seconds": math.nan},
        {"segment_seconds": 0}, {"labels": []},
        {"prompts": Prompts(picture=())}, {"prompts": Prompts(picture="a photo of {}.")},
        {"prompts": Prompts(sound=("a sound.",))}, {"prompts": Prompts(sound=("{} and {}",))},
        {"prompts": Prompts(no_sound=())}, {"prompts": Prompts(no_picture=(" ",))},
    ],
)  # fmt: skip
def test_options_out_of_range_are_refused(tiny_video: Path, wrong: dict[str, object]) -> None:
    visual, audio = encoders(0)
    options = {"labels": LABELS, "clip": visual, "clap": audio, "prompts": PROMPTS, "segment_seconds": SECONDS} | wrong
    with pytest.raises(AvelError):
        localize_words(tiny_video, **options)


def test_an_encoder_without_numbers_is_refused(tiny_video: Path) -> None:
    visual, audio = encoders(0)
    visual.script[5] = np.nan
    with pytest.raises(AvelError, match="not finite"):
        localize_words(tiny_video, LABELS, clip=visual, clap=audio, segment_seconds=SECONDS, prompts=PROMPTS)


def test_no_such_file() -> None:
    visual, audio = encoders(0)
    with pytest.raises(AvelError, match="no such file"):
        localize_words("nowhere.mp4", LABELS, clip=visual, clap=audio, prompts=PROMPTS)


# the whole way


@needs_transformers
def test_the_whole_way(tiny_video: Path, tmp_path: Path) -> None:
    clip, clap = write_clip(tmp_path / "clip"), write_clap(tmp_path / "clap")
    timeline = localize_words(tiny_video, "dog barking, church bell", clip=clip, clap=str(clap), threshold=0.0)
    assert timeline.probabilities.shape == (3, 3) and timeline.attention.shape == (3, 4, 4)
    np.testing.assert_allclose(timeline.probabilities.sum(1), 1)
    np.testing.assert_allclose(timeline.attention.sum((1, 2)), 1)
    assert timeline.tags["visual"].startswith("clip-") and timeline.tags["audio"].startswith("clap-")
    files = present(timeline, tmp_path / "out", "tiny", (*USUAL_FORMATS, "html"))
    assert [file.suffix for file in files] == [".json", ".csv", ".vtt", ".txt", ".png", ".html"]
    assert all(file.is_file() for file in files)
    assert json.loads(files[0].read_text())["classes"] == ["dog barking", "church bell"]
    again = localize_words(tiny_video, ["dog barking", "church bell"], clip=clip, clap=clap, threshold=0.0)
    np.testing.assert_array_equal(again.probabilities, timeline.probabilities)
    np.testing.assert_array_equal(again.attention, timeline.attention)


def test_without_weights_it_says_what_to_get(monkeypatch: pytest.MonkeyPatch, tiny_video: Path) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(AvelError, match="avel\\[hf\\]"):
        localize_words(tiny_video, "dog")


# the command line


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """``--clip FOLDER --clap FOLDER`` of networks that find a church bell in the tiny video's last second alone."""
    folder = tmp_path_factory.mktemp("models")
    clip, clap = write_clip(folder / "clip", seed=4), write_clap(folder / "clap", seed=3)
    return ["--clip", str(clip), "--clap", str(clap)]


@needs_transformers
def test_the_command_line(
    tiny_video: Path, tmp_path: Path, models: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A good clip among broken ones: its files are written, the others reported."""
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(tiny_video.read_bytes()[:1000])
    table = tmp_path / "truth.csv"
    table.write_text(f"video,start,end,label\n{tiny_video},0,2,church bell\n")
    videos = [str(broken), str(tiny_video), str(tmp_path / "nowhere.mp4")]
    options = ["--labels", 'church bell, "drum, snare"', *models, "--out", str(tmp_path / "out"), "--html"]
    assert cli.main(["localize", *videos, *options, "--truth", str(table)]) == 1
    said = capsys.readouterr()
    assert f"failed: {broken}" in said.err and "2 of 3 videos failed" in said.err and "Traceback" not in said.err
    assert "labels to find: church bell; drum, snare\n" in said.out and "2.0  3.0" in said.out
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == sorted(
        ["index.html", "tiny.clip.mp4", *(f"tiny.{end}" for end in ("json", "csv", "vtt", "txt", "png", "html"))]
    )

    clip, clap = models[1::2]
    wanted = avel.localize_words(tiny_video, ["church bell", "drum, snare"], clip=clip, clap=clap)
    found = Timeline.from_json(tmp_path / "out" / "tiny.json")
    np.testing.assert_allclose(found.probabilities, wanted.probabilities, atol=1e-4)
    assert found.classes == ("church bell", "drum, snare") and wanted.tags.items() <= found.tags.items()
    assert (found.threshold, found.min_seconds) == (0.5, 0.0)
    (event,) = found.events
    assert (event.label, event.start, event.end) == ("church bell", 2.0, 3.0) and event.score > 0.5
    assert found.truth[0].end == 2.0
    assert (tmp_path / "out" / "tiny.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "out" / "tiny.html").read_text()
    assert "Looked and listened for 2 classes: church bell, drum, snare." in page and "The model knows" not in page


@needs_transformers
@pytest.mark.parametrize("options", [["--threshold", "0.95"], ["--min-seconds", "1.5"]])
def test_threshold_and_length(tiny_video: Path, tmp_path: Path, models: list[str], options: list[str]) -> None:
    command = ["localize", str(tiny_video), "--labels", "church bell", *models, "--out", str(tmp_path)]
    assert cli.main([*command, *options]) == 0
    assert Timeline.from_json(tmp_path / "tiny.json").events == ()


@needs_transformers
def test_weights_that_cannot_be_used(
    tiny_video: Path, tmp_path: Path, models: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    clip, clap = models[1::2]
    for wrong, said in (
        (["--clip", str(tmp_path / "none"), "--clap", clap], f"no such folder: {tmp_path / 'none'}"),
        (["--clip", clip, "--clap", str(tmp_path / "none")], f"no such folder: {tmp_path / 'none'}"),
        (["--clip", clap, "--clap", clap], f"{clap} holds a model of type 'clap'"),
        (["--clip", clip, "--clap", clip], f"{clip} holds a model of type 'clip'"),
    ):
        out = tmp_path / "out"
        assert cli.main(["localize", str(tiny_video), "--labels", "dog", *wrong, "--out", str(out)]) == 2
        error = capsys.readouterr().err
        assert said in error and "expected:" in error and "do this:" in error and "Traceback" not in error
        assert not out.exists()


def test_a_label_that_is_a_verb_is_no_call_for_help(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert cli.main(["localize", "clip.mp4", "--labels", "data"]) == 2
    error = capsys.readouterr().err
    assert 'run: pip install "avel[hf]"' in error and "Traceback" not in error


@needs_transformers
@pytest.mark.parametrize("setting", ["HF_ENDPOINT=http://127.0.0.1:9", "HF_HUB_OFFLINE=1"])
def test_without_a_network(tiny_video: Path, tmp_path: Path, setting: str) -> None:
    """A hub that does not answer or must not be asked: what to download, and where to put it."""
    environment = os.environ | {"HF_HOME": str(tmp_path), "AVEL_CACHE": str(tmp_path / "own"), "NO_PROXY": "127.0.0.1"}
    environment |= [setting.split("=")]
    command = [sys.executable, "-m", "avel", "localize", str(tiny_video), "--labels", "dog"]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2
    assert "run: hf download openai/clip-vit-base-patch32" in result.stderr and "Traceback" not in result.stderr
    assert f"--local-dir {tmp_path}/own/clip-vit-base-patch32" in result.stderr
    assert "https://huggingface.co/openai/clip-vit-base-patch32/tree/refs/pr/15" in result.stderr


def test_the_help_names_the_usual_weights(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["localize", "--help"])
    text = "".join(capsys.readouterr().out.split())
    for weights in (CLIP_WEIGHTS, CLAP_WEIGHTS):
        assert f"bydefault{weights.partition('@')[0]}." in text


def test_a_label_that_both_give_just_the_threshold_is_agreed_on() -> None:
    both = np.array([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25]])
    assert (_only_agreed(both, both, both, 0.5) == both).all()
    assert (_only_agreed(both, both, both, float(np.nextafter(0.5, 1)))[:, -1] == 1).all()
