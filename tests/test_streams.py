"""What files hold in life: several streams, covers, pictures on their side, odd forms of pixels and of sound."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from conftest import EndsOfSound, GreyMeans
from media import Pictures, Sound, write_streams

from avel import cli
from avel.data.store import open_store
from avel.errors import AvelError
from avel.features import AudioExtractor, VisualExtractor
from avel.features.audio_samples import AudioTrack, mono_shares, read_waveform
from avel.features.extract import extract
from avel.features.recipe import Recipe, Streams
from avel.features.segments import extract_clip
from avel.features.streams import probe
from avel.features.video import Scaler, open_media, sample_frames

#: Four quarters: red, green, blue, white.
QUARTERS = np.zeros((48, 64, 3), np.uint8)
QUARTERS[:24, :32], QUARTERS[:24, 32:], QUARTERS[24:, :32], QUARTERS[24:] = [200, 0, 0], [0, 180, 0], [0, 0, 220], 0
QUARTERS[24:, :32], QUARTERS[24:, 32:] = [0, 0, 220], [240, 240, 240]


def grey(level: int, size: tuple[int, int] = (48, 64)) -> Callable[[float], np.ndarray]:
    return lambda time: np.full((*size, 3), level, np.uint8)


def tone(hertz: float, loudness: float = 0.5) -> Callable[[np.ndarray], np.ndarray]:
    return lambda times: loudness * np.sin(2 * np.pi * hertz * times)


def pitch(wave: np.ndarray, rate: int) -> float:
    return float(np.abs(np.fft.rfft(wave)).argmax() * rate / len(wave))


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cover, two videos (dark, bright) and three sounds (300, 600 and 1200 Hz), the last one in French."""
    return write_streams(
        tmp_path_factory.mktemp("media") / "several.mp4",
        Pictures(grey(120), 0.1, codec="mjpeg", pix_fmt="yuvj420p", disposition=av.stream.Disposition.attached_pic),
        Pictures(grey(60)),
        Pictures(grey(200, (32, 32))),
        Sound(tone(300)),
        Sound(tone(600)),
        Sound(tone(1200), layout="stereo", language="fra"),
    )


@pytest.mark.parametrize(
    ("streams", "level", "hertz"),
    [
        (Streams(), 60, 300),
        (Streams(video=0, audio=0), 60, 300),
        (Streams(video=1), 200, 300),
        (Streams(audio=1), 60, 600),
        (Streams(video=1, audio=2), 200, 1200),
    ],
)
def test_the_chosen_streams_are_decoded(several: Path, streams: Streams, level: int, hertz: int) -> None:
    assert sample_frames(several, [0.0, 2.0], 32, streams=streams).mean() == pytest.approx(level, abs=3)
    wave = read_waveform(several, 16_000, streams=streams)
    assert pitch(wave[:32_000], 16_000) == pytest.approx(hertz, abs=1)
    found = extract_clip(several, GreyMeans(), EndsOfSound(), Recipe(streams=streams))
    assert found.visual.mean() == pytest.approx(level, abs=3) and len(found.visual) == 3
    size = "32x32" if streams.video else "64x48"
    sound = "2 of 3 (aac, 48000 Hz, stereo, fra)" if hertz == 1200 else f"{hertz // 600} of 3 (aac, 48000 Hz, mono)"
    assert found.streams == f"video {streams.video or 0} of 2 (h264, {size}), audio {sound}"


@pytest.mark.parametrize("streams", [Streams(video=2), Streams(audio=3), Streams(video=-1), Streams(audio=-1)])
def test_a_stream_that_is_not_there(several: Path, streams: Streams) -> None:
    with pytest.raises(AvelError, match=r"several\.mp4 has no (video|audio) stream") as error:
        probe(several, streams=streams)
    assert "0 (" in error.value.expected and "1 (" in error.value.expected and "-stream" in error.value.do


def test_nothing_is_said_where_there_is_no_choice(tiny_video: Path) -> None:
    assert probe(tiny_video).streams == ""
    assert probe(tiny_video, streams=Streams(0, 0)).streams == ""
    with pytest.raises(AvelError, match="has no audio stream 1"):
        probe(tiny_video, streams=Streams(audio=1))


def test_a_store_knows_its_streams_and_takes_no_others_for_them(
    several: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "store"
    assert cli.main(["extract", str(several), "--out", str(out), "--workers", "1"]) == 0
    said = capsys.readouterr().out
    assert "several.mp4, what was read: video 0 of 2 (h264, 64x48), audio 0 of 3" in said
    first = open_store(out).clips[0]
    assert first.streams.startswith("video 0 of 2 (h264, 64x48), audio 0 of 3")
    assert extract(several, out, workers=0).skipped == 1
    assert extract(several, out, Recipe(streams=Streams(video=0)), workers=0).skipped == 1
    assert cli.main(["extract", str(several), "--out", str(out), "--video-stream", "1", "--audio-stream", "2"]) == 0
    assert "what was read: video 1 of 2 (h264, 32x32), audio 2 of 3" in capsys.readouterr().out
    assert open_store(out).clips[0].checksum != first.checksum
    assert extract(several, out, Recipe(streams=Streams(1, 2)), workers=0).skipped == 1
    assert extract(several, out, workers=0).skipped == 0
    assert open_store(out).clips[0].checksum == first.checksum


def test_a_store_of_plain_files_says_nothing_of_streams(tiny_video: Path, tmp_path: Path) -> None:
    extract(tiny_video, tmp_path / "store", workers=0)
    assert "streams" not in (tmp_path / "store" / "store.json").read_text()
    assert open_store(tmp_path / "store").clips[0].streams == ""


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.parametrize("mirror", [(False, False), (True, False), (False, True)])
def test_pictures_are_shown_the_way_up_that_the_file_says(
    tmp_path: Path, degrees: int, mirror: tuple[bool, bool]
) -> None:
    path = write_streams(
        tmp_path / "a.mp4", Pictures(lambda time: QUARTERS, 1, turn=(degrees, *mirror)), Sound(tone(300), 1)
    )
    wanted = np.rot90(QUARTERS, degrees // 90)
    wanted = wanted[:, ::-1] if mirror[0] else wanted
    wanted = wanted[::-1] if mirror[1] else wanted
    (found,) = sample_frames(path, [0.0], wanted.shape[1])
    assert found.shape == wanted.shape
    middles = [(slice(a, a + 8), slice(b, b + 8)) for a in (8, wanted.shape[0] - 16) for b in (8, wanted.shape[1] - 16)]
    for place in middles:
        assert np.abs(found[place].mean((0, 1)) - wanted[place].mean((0, 1))).max() < 12

    class Corners(GreyMeans):
        """The mean grey of the corners of the picture: how the extractors see it."""

        dim = 4

        def __call__(self, frames: np.ndarray) -> np.ndarray:
            grey = frames.reshape(-1, 16, 8, 8, 3)[:, 0].mean(-1)
            return np.stack([grey[:, y, x] for y in (1, 6) for x in (1, 6)], -1)[:, None, None].astype(np.float32)

    corners = extract_clip(path, Corners(), EndsOfSound()).visual[0, 0, 0]
    assert np.abs(corners - [wanted[place].mean() for place in middles]).max() < 12


def test_pictures_at_a_slant_are_refused(tmp_path: Path, visual: VisualExtractor, audio: AudioExtractor) -> None:
    path = write_streams(tmp_path / "a.mp4", Pictures(grey(60), 1, turn=(30, False, False)), Sound(tone(300), 1))
    with pytest.raises(AvelError, match=r"a\.mp4: its pictures are rotated by 30\.0 degrees"):
        extract_clip(path, visual, audio)


FORMS = [("libx264", form) for form in ("yuv420p10le", "yuv422p", "yuv422p10le", "yuv444p", "yuv444p10le", "nv12")]
FORMS += [("ffv1", form) for form in ("yuv420p16le", "yuv411p", "yuv410p", "yuva420p", "bgra", "gbrp10le", "rgb48le")]
FORMS += [("prores_ks", "yuv422p10le"), ("libx265", "yuv420p12le"), ("rawvideo", "uyvy422"), ("libx264", "yuvj420p")]


@pytest.mark.parametrize(("codec", "form"), FORMS)
def test_forms_of_pixels(tmp_path: Path, codec: str, form: str) -> None:
    path = write_streams(
        tmp_path / "a.mkv", Pictures(lambda time: QUARTERS, 1, codec=codec, pix_fmt=form), Sound(tone(300), 1)
    )
    (found,) = sample_frames(path, [0.5], 64)
    for place in ((12, 16), (12, 48), (36, 16), (36, 48)):
        assert np.abs(found[place].astype(int) - QUARTERS[place]).max() < 14, (place, found[place])
    assert len(extract_clip(path, GreyMeans(), EndsOfSound()).visual) == 1


@pytest.mark.parametrize("form", ["gray", "gray10le", "gray16le"])
def test_grey_pixels(tmp_path: Path, form: str) -> None:
    path = write_streams(
        tmp_path / "a.mkv", Pictures(grey(150), 1, codec="ffv1", pix_fmt=form), Sound(tone(300), 1, codec="flac")
    )
    assert extract_clip(path, GreyMeans(), EndsOfSound()).visual.mean() == pytest.approx(150, abs=4)


@pytest.mark.parametrize("size", [(49, 65), (1, 1), (3, 17), (17, 3), (240, 2)])
def test_odd_sizes(tmp_path: Path, size: tuple[int, int], visual: VisualExtractor, audio: AudioExtractor) -> None:
    path = write_streams(
        tmp_path / "a.mkv", Pictures(grey(150, size), 1, codec="ffv1", pix_fmt="yuv444p"), Sound(tone(300), 1)
    )
    assert extract_clip(path, GreyMeans(), EndsOfSound()).visual.mean() == pytest.approx(150, abs=3)
    assert np.isfinite(extract_clip(path, visual, audio).visual).all()


def test_colours_of_a_real_hd_clip_of_full_range(real_data: Path) -> None:
    """Against the arithmetic of ITU-R BT.709, full range, on the planes as decoded."""
    with open_media(real_data / "media" / "bt709_full_range.mp4", audio=False) as media:
        frame = next(f for _, f in media.decode() if isinstance(f, av.VideoFrame))
    assert (frame.format.name, int(frame.colorspace)) == ("yuvj420p", 1)
    planes = frame.to_ndarray().astype(np.float64)
    height, width = frame.height, frame.width
    y = planes[:height]
    u, v = (
        half.reshape(height // 2, width // 2).repeat(2, 0).repeat(2, 1) - 128 for half in np.split(planes[height:], 2)
    )
    wanted = np.stack([y + 1.5748 * v, y - 0.1873 * u - 0.4681 * v, y + 1.8556 * u], -1).clip(0, 255)
    assert np.abs(Scaler()(frame) - wanted).mean() < 1.5  # chroma is interpolated there and repeated here


@pytest.mark.parametrize(("name", "codec"), [("a.ts", "mpeg2video"), ("a.mkv", "libx264"), ("a.mkv", "ffv1")])
def test_interlaced_pictures_are_whole_frames_at_their_times(tmp_path: Path, name: str, codec: str) -> None:
    def combed(time: float) -> np.ndarray:
        lines = np.full((64, 64, 3), 40 + 20 * round(time * 10), np.uint8)
        lines[1::2] += 10  # the other field
        return lines

    options = {"preset": "ultrafast", "crf": "5", "x264-params": "tff=1"}
    path = write_streams(
        tmp_path / name,
        Pictures(combed, 1, 25, codec, options=options, interlaced=codec == "mpeg2video"),
        Sound(tone(300), 1, codec="mp2", rate=48_000),
    )
    with open_media(path) as media:
        frames = [(time, frame) for time, frame in media.decode() if isinstance(frame, av.VideoFrame)]
    if codec != "ffv1":
        assert all(frame.interlaced_frame for _, frame in frames)
    assert len(frames) == 25 and np.diff([time for time, _ in frames]) == pytest.approx([0.04] * 24, abs=0.002)
    for index, (_, frame) in enumerate(frames):
        assert Scaler()(frame).mean() == pytest.approx(45 + 20 * round(index / 25 * 10), abs=6)


#: What each channel adds to mono sound. FFmpeg's manual (ffmpeg-resampler): centre and surrounds at -3 dB in either of
#: two channels, LFE at nothing, normalised. L' = L + 0.707 C + 0.707 Ls and R' alike, so mono is L + R + 1.414 C +
#: 0.707 (Ls + Rs), over the sum of these; a single channel in the back is in both at -6 dB.
LAYOUTS = {
    "mono": [1],
    "stereo": [0.5, 0.5],
    "3.0": [0.2929, 0.2929, 0.4142],
    "4.0": [0.2426, 0.2426, 0.3431, 0.1716],
    "quad": [0.2929, 0.2929, 0.2071, 0.2071],
    "5.0": [0.2071, 0.2071, 0.2929, 0.1464, 0.1464],
    "5.1": [0.2071, 0.2071, 0.2929, 0, 0.1464, 0.1464],
    "7.1": [0.1602, 0.1602, 0.2265, 0, 0.1133, 0.1133, 0.1133, 0.1133],
}


def heard(path: Path, rate: int | None) -> AudioTrack:
    """The sound of a file, its samples as the attribute ``wave``."""
    track = AudioTrack(rate)
    with open_media(path, video=False) as media:
        pieces = [track.push(time, frame) for time, frame in media.decode() if isinstance(frame, av.AudioFrame)]
    track.wave = np.concatenate([*pieces, track.finish()])
    return track


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("name", "codec"), [("a.mkv", "flac"), ("a.mov", "pcm_s24le"), ("a.mkv", "aac")])
def test_channels_from_mono_to_seven_and_one(tmp_path: Path, layout: str, name: str, codec: str) -> None:
    """Each channel has a tone of its own, and each is heard at its share; AVE's recipe averages."""
    shares = np.array(LAYOUTS[layout])
    hertz = 300.0 * (1 + np.arange(len(shares)))
    hertz[shares == 0] = 50.0  # the channel of low frequencies, which AAC cuts off above
    path = write_streams(
        tmp_path / name,
        Pictures(grey(60), 1),
        Sound(lambda times: 0.5 * np.sin(2 * np.pi * hertz[:, None] * times), 1, 48_000, codec, layout),
    )
    for rate, wanted in ((16_000, shares), (None, np.full(len(shares), 1 / len(shares)))):
        track = heard(path, rate)
        spectrum = 2 * np.abs(np.fft.rfft(track.wave[: track.sample_rate])) / track.sample_rate
        assert spectrum[hertz.astype(int)] == pytest.approx(0.5 * wanted, abs=0.01)
        spectrum[hertz.astype(int)] = 0
        assert spectrum.max() < 0.02
        recipe = "averaged, as AVE's recipe does" if rate is None else "mixed as FFmpeg does"
        without = ", without LFE" if rate and layout.endswith(".1") else ""
        assert track.mixing == (f"{layout}: {recipe}{without}" if len(shares) > 2 else "")


def test_shares_are_those_of_ffmpeg() -> None:
    names = "2.1 3.0 3.0(back) 4.0 quad quad(side) 3.1 4.1 5.0 5.0(side) 5.1 5.1(side) 6.0 6.0(front) hexagonal 6.1"
    names += (
        " 6.1(back) 6.1(front) 7.0 7.0(front) 7.1 7.1(wide) 7.1(wide-side) octagonal cube 5.1.4 7.1.4 hexadecagonal"
    )
    for name in names.split():
        layout = av.AudioLayout(name)
        one_each = np.eye(layout.nb_channels, dtype=np.float32).reshape(1, -1)  # sample k is channel k alone
        frame = av.AudioFrame.from_ndarray(one_each, format="flt", layout=name)
        frame.sample_rate = 48_000
        resampler = av.AudioResampler(format="flt", layout="mono", rate=48_000)
        matrix = np.concatenate(
            [each.to_ndarray()[0] for each in [*resampler.resample(frame), *resampler.resample(None)]]
        )
        assert mono_shares(layout) == pytest.approx(matrix / matrix.sum(), abs=1e-6), name


@pytest.mark.parametrize("layout", ["6 channels", "ambisonic 1"])
def test_channels_of_no_known_place_are_averaged(layout: str) -> None:
    number = av.AudioLayout(layout).nb_channels
    samples = np.outer(np.arange(number) == 1, np.full(1000, 0.6)).astype(np.float32)
    frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=layout)
    frame.sample_rate = 8000
    track = AudioTrack(8000)
    wave = np.concatenate([track.push(0.0, frame), track.finish()])
    assert wave == pytest.approx(np.full(1000, 0.6 / number), abs=1e-6)
    assert track.mixing == f"{layout}: averaged, as the file does not say where they belong"


def test_channels_that_ffmpeg_leaves_out_or_that_share_a_place() -> None:
    assert mono_shares(av.AudioLayout("FC+FC+FC")) == pytest.approx([1 / 3] * 3)
    assert mono_shares(av.AudioLayout("FL+FR+DL+DR")) == pytest.approx([0.5, 0.5, 0, 0])
    assert mono_shares(av.AudioLayout("UNK+UNK+UNK")) is None


@pytest.mark.parametrize("form", ["u8", "u8p", "s16", "s32p", "fltp", "dbl"])
def test_a_centre_alone_in_every_format(form: str) -> None:
    """Its level is what FFmpeg gives, 1 / (1 + 4 * 0.707 * 0.5 + ...) = -10.7 dB, and silence stays silence."""
    dtype = {"u": np.uint8, "s1": np.int16, "s3": np.int32, "fl": np.float32, "db": np.float64}
    kind = next(value for key, value in dtype.items() if form.startswith(key))
    zero, full = (128, 128) if kind == np.uint8 else (0, 1 if form[0] in "fd" else 2 ** (8 * kind().itemsize - 1))
    samples = np.full((6, 1000), zero, kind)
    samples[2] = zero + full // 2 if form[0] in "us" else 0.5
    if not form.endswith("p"):
        samples = samples.T.reshape(1, -1)
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format=form, layout="5.1")
    frame.sample_rate = 8000
    track = AudioTrack(8000)
    wave = np.concatenate([track.push(0.0, frame), track.finish()])
    assert wave == pytest.approx(np.full(1000, 0.5 * 0.29289), abs=1e-4)


def test_the_number_of_channels_may_change(tmp_path: Path) -> None:
    track, waves = AudioTrack(8000), []
    for number, layout in enumerate(["5.1(side)", "stereo", "5.1(side)", "quad"]):
        channels = av.AudioLayout(layout).nb_channels
        frame = av.AudioFrame.from_ndarray(np.full((channels, 8000), 0.5, np.float32), format="fltp", layout=layout)
        frame.sample_rate = 8000
        waves.append(track.push(number, frame))
    assert np.concatenate([*waves, track.finish()]) == pytest.approx(np.full(32_000, 0.5), abs=1e-5)
    assert track.mixing == "5.1(side): mixed as FFmpeg does, without LFE, then quad: mixed as FFmpeg does"


def test_a_store_says_how_channels_were_mixed_and_a_later_run_opens_no_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def centre(times: np.ndarray) -> np.ndarray:
        return np.outer([0, 0, 1, 0, 0, 0], 0.5 * np.sin(2 * np.pi * 440 * times))

    for name, layout, wave in (("a.mp4", "5.1", centre), ("b.mp4", "stereo", tone(440))):
        write_streams(tmp_path / name, Pictures(grey(60), 3), Sound(wave, 3, 48_000, "aac", layout))
    out = tmp_path / "store"
    assert cli.main(["extract", str(tmp_path), "--out", str(out), "--workers", "0"]) == 0
    assert "a.mp4, what was read: channels 5.1: mixed as FFmpeg does, without LFE" in capsys.readouterr().out
    first, plain = open_store(out).clips
    assert first.streams == "channels 5.1: mixed as FFmpeg does, without LFE" and plain.streams == ""
    tags = extract_clip(tmp_path / "a.mp4", GreyMeans(), EndsOfSound()).tags
    assert tags == {"channels": "5.1: mixed as FFmpeg does, without LFE"}  # which a timeline carries
    index = out / "store.json"
    index.write_text(index.read_text().replace(f', "streams": "{first.streams}"', ""))

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a media file was opened")

    # As of a file whose header says six channels, and whose sound decodes to two: what is there with the same settings
    # is there, whatever the header says, which takes 15 ms to read.
    monkeypatch.setattr("avel.features.streams.open_container", refuse)
    assert extract(tmp_path, out, workers=0).skipped == 2
    assert [clip.streams for clip in open_store(out).clips] == ["", ""]


@pytest.mark.parametrize("rate", [8_000, 11_025, 12_000, 22_050, 44_100, 48_000, 96_000, 192_000])
@pytest.mark.parametrize("codec", ["pcm_s16le", "pcm_f32le", "pcm_s64le"])
def test_any_sample_rate(tmp_path: Path, rate: int, codec: str) -> None:
    name = "a.mov" if codec == "pcm_s16le" else "a.nut" if codec == "pcm_s64le" else "a.mkv"
    path = write_streams(tmp_path / name, Pictures(grey(60), 2), Sound(tone(1000), 2, rate, codec))
    wave = read_waveform(path, 16_000)
    assert len(wave) == pytest.approx(32_000, abs=40)
    assert pitch(wave[:16_000], 16_000) == pytest.approx(1000, abs=1)
    assert np.abs(wave[1000:15_000]).max() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("name", ["a.mov", "a.mkv", "a.ts", "a.mp4"])
def test_sound_that_starts_late_and_ends_early(tmp_path: Path, name: str) -> None:
    codec = {"a.mov": "pcm_s16le", "a.mkv": "flac", "a.ts": "mp2", "a.mp4": "aac"}[name]
    path = write_streams(tmp_path / name, Pictures(grey(60), 6, 25), Sound(tone(1000), 3, 48_000, codec, start=1.25))
    assert probe(path).duration == pytest.approx(4.25, abs=0.1)
    found = extract_clip(path, GreyMeans(), EndsOfSound())
    assert found.duration == pytest.approx(4.25, abs=0.1) and len(found.audio) == 4 and found.audio_valid
    wave = np.abs(read_waveform(path, 16_000))
    loud = np.flatnonzero(wave > 0.25) / 16_000
    assert loud[0] == pytest.approx(1.25, abs=0.04) and loud[-1] == pytest.approx(4.25, abs=0.06)


def test_pictures_at_a_variable_rate_through_the_features(tmp_path: Path) -> None:
    times = np.cumsum([0.0, *np.random.default_rng(0).uniform(0.02, 0.4, 24)]).round(3).tolist()
    levels = {round(time, 3): 20 + 8 * index for index, time in enumerate(times)}
    for name in ("a.mp4", "a.mkv"):
        path = write_streams(
            tmp_path / name,
            Pictures(lambda time: grey(levels[round(time, 3)])(0), times=times),
            Sound(tone(300), times[-1] + 0.1),
        )
        found = extract_clip(path, GreyMeans(), EndsOfSound()).visual.reshape(-1)
        wanted = [levels[max(time for time in times if time <= slot / 16 + 1e-3)] for slot in range(len(found))]
        assert np.abs(found - wanted).max() < 4
