"""Every picture, as PNG: a timeline over its frames, training curves, the confusion matrix, bars per class.

matplotlib is imported when the first picture is drawn, and without pyplot: no global figure, no window, any thread.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from avel.files import replacing
from avel.text import visible
from avel.timeline import Timeline
from avel.types import BACKGROUND

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Ten colours that stay apart for protanopes and deuteranopes (a test simulates both), legible on white and black.
PALETTE = (
    "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#882255", "#ddcc77", "#4b3bb0", "#7a4a1e",
)  # fmt: skip

#: Seconds between the ticks of a time axis, one of these.
TICK_STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600)

_INK, _MUTED, _RULE, _GROUND = "#1b1f24", "#5b6470", "#d5dae0", "#eef1f4"
_FRAMES_ACROSS = 10
_DPI = 120


# Shared with the page and the terminal


def class_color(index: int) -> str:
    """``#rrggbb`` of a class index, the same in every picture; after ten classes the same hues darker, then lighter."""
    base = PALETTE[index % len(PALETTE)]
    mix = ((0.0, 0), (0.4, 0), (0.45, 255))[index // len(PALETTE) % 3]
    parts = (int(base[place : place + 2], 16) for place in (1, 3, 5))
    return "#" + "".join(f"{round(part + (mix[1] - part) * mix[0]):02x}" for part in parts)


def text_color(background: str) -> str:
    """Black or white, whichever is easier to read on ``#rrggbb`` (WCAG relative luminance)."""
    parts = [int(background[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#000000" if luminance > 0.179 else "#ffffff"


def shown_classes(timeline: Timeline, at_least: int = 4) -> list[int]:
    """Class ids worth a row: all found or labelled ones, filled up to ``at_least`` by peak probability; ascending."""
    named = {span.label for span in (*timeline.events, *(timeline.truth or ()))}
    rows = [index for index, name in enumerate(timeline.classes) if name in named]
    peaks = timeline.probabilities[:, :-1].max(0)
    for index in np.argsort(-peaks, kind="stable").tolist():
        if len(rows) >= at_least:
            break
        if index not in rows:
            rows.append(index)
    return sorted(rows)


def tick_step(duration: float, most: int = 12) -> float:
    """Seconds between the ticks of a time axis: a round number that gives at most ``most`` steps."""
    return next((step for step in TICK_STEPS if duration / step <= most), 3600 * np.ceil(duration / 3600 / most))


def clock(seconds: float, duration: float, decimals: int = 0) -> str:
    """A moment of a clip: ``7`` in a clip of under two minutes, else ``1:07`` or ``1:02:07``."""
    if duration < 120:
        return f"{seconds:.{decimals}f}"
    whole, scale = round(seconds * 10**decimals), 10**decimals
    minutes, rest = divmod(whole, 60 * scale)
    width = 2 if decimals == 0 else 3 + decimals
    tail = f"{rest / scale:0{width}.{decimals}f}"
    return f"{minutes // 60}:{minutes % 60:02d}:{tail}" if minutes >= 60 else f"{minutes}:{tail}"


# The timeline


def frame_times(timeline: Timeline) -> list[float]:
    """The moments, in seconds, whose frames `timeline_picture` shows: one per segment, or ten evenly spaced."""
    num_segments = len(timeline.probabilities)
    count = num_segments if num_segments <= 12 else _FRAMES_ACROSS
    length = num_segments * timeline.segment_seconds
    middles = (np.arange(count) + 0.5) * length / count
    return [float(min(middle, timeline.duration)) for middle in middles]


def timeline_picture(
    timeline: Timeline, frames: np.ndarray, waveform: np.ndarray, sample_rate: int, out: str | Path
) -> None:
    """Draw one clip from top to bottom: frames, sound, truth if known, prediction, probabilities.

    Attention lies over a frame (as Fig. 9 of the CCLN paper) only where an event is predicted: red-hot at the peak
    of its map, and nothing on cells with an even share or less.

    Args:
        timeline: with or without ``attention`` and ``truth``.
        frames: (N, h, w, 3) uint8, those at `frame_times`.
        waveform: (samples,) float, mono.
        sample_rate: Hz.
        out: the PNG to write.
    """
    times = frame_times(timeline)
    if len(frames) != len(times):
        raise ValueError(f"{len(frames)} frames for the {len(times)} moments of frame_times")
    length = max(timeline.duration, len(timeline.probabilities) * timeline.segment_seconds)
    rows = shown_classes(timeline)

    width, left, right = 12.5, 1.75, 0.35
    inner = width - left - right
    cell = inner / len(times) * len(timeline.probabilities) * timeline.segment_seconds / length
    frame_height = min(cell * frames.shape[1] / frames.shape[2], 2.0)
    known = _wrapped(f"{timeline.looked_for}: {', '.join(timeline.classes)}.", 140)
    bars = 2 if timeline.truth is not None else 1
    # Top edges of the bands, in inches from the top of the page.
    heights = [frame_height, 0.7, 0.34 * bars, 0.27 * len(rows)]
    tops = [0.55]
    for height in heights:
        tops.append(tops[-1] + height + 0.1)
    figure = _figure(width, tops[-1] + 0.62 + 0.17 * known.count("\n"))
    total = figure.get_figheight()

    def band(number: int) -> Axes:
        box = (left / width, 1 - (tops[number] + heights[number]) / total, inner / width, heights[number] / total)
        axes = figure.add_axes(box, xlim=(0, length), yticks=[], xticks=[])
        axes.spines[:].set_visible(False)
        return axes

    axes = band(0)
    axes.set_ylim(0, frame_height)
    for frame, time in zip(frames, times, strict=True):
        segment = min(int(time / timeline.segment_seconds), len(timeline.probabilities) - 1)
        _draw_frame(axes, _with_heat(frame, timeline, segment), time, inner / length, cell)
    _row_name(axes, "frames" if timeline.attention is None else "frames,\nattention", frame_height / 2)

    axes = band(1)
    axes.set_ylim(-1.05, 1.05)
    low, high = envelope(waveform, round(inner * _DPI))
    moments = np.linspace(0, len(waveform) / sample_rate, len(low))
    axes.fill_between(moments, low, high, color="#4a5563", linewidth=0.4)
    _row_name(axes, "sound", 0)

    axes = band(2)
    axes.set_ylim(0, bars)
    spans = [("prediction", timeline.events)] + ([("truth", timeline.truth)] if timeline.truth is not None else [])
    for bottom, (name, events) in enumerate(spans):
        axes.add_patch(_rectangles([(0, length)], bottom + 0.06, 0.88, _GROUND))
        # One patch per colour: patches that share a pixel would cover one another there.
        shapes: dict[str, list[tuple[float, float]]] = {}
        for event in events:
            if event.start >= length:  # an annotation can start after the end of the clip
                continue
            index = timeline.classes.index(event.label) if event.label in timeline.classes else None
            color = "#8a929c" if index is None else class_color(index)
            end = min(event.end, length)
            shapes.setdefault(color, []).append((event.start, end))
            pixels = (end - event.start) / length * inner * _DPI
            if pixels > 30:
                middle = ((event.start + end) / 2, bottom + 0.48)
                _label_if_it_fits(axes, event.label, middle, text_color(color), pixels)
        for color, lane in shapes.items():
            axes.add_patch(_rectangles(lane, bottom + 0.06, 0.88, color))
        _row_name(axes, name, bottom + 0.5)

    axes = band(3)
    axes.set_ylim(0, len(rows))
    edges = np.arange(len(timeline.probabilities) + 1) * timeline.segment_seconds
    for place, index in enumerate(reversed(rows)):
        axes.add_patch(_rectangles([(0, length)], place + 0.06, 0.84, _GROUND))  # its height is a probability of 1
        axes.stairs(
            place + 0.06 + 0.84 * timeline.probabilities[:, index],
            edges,
            baseline=place + 0.06,
            fill=True,
            color=class_color(index),
            snap=False,
        )
        _row_name(axes, _shortened(timeline.classes[index], 30), place + 0.42, color=class_color(index))
    axes.set_xticks(np.arange(0, length * 1.0001, tick_step(length)))
    axes.set_xticklabels([clock(tick, length, int(tick_step(length) < 1)) for tick in axes.get_xticks()])
    axes.tick_params(axis="x", colors=_MUTED, labelsize=9)
    axes.set_xlabel("seconds" if length < 120 else "minutes : seconds", color=_MUTED, fontsize=9, labelpad=1)

    _text(figure, left, total - 0.33, _shortened(Path(timeline.video).name, 80), fontsize=13, fontweight="bold")
    _text(figure, left, 0.1, known, fontsize=9, color=_MUTED, va="bottom")
    _save(figure, out)


def upsample(grid: np.ndarray, height: int, width: int) -> np.ndarray:
    """(H, W) -> (height, width), bilinear between the centres of the cells, constant outside the outermost."""
    for axis, size in ((0, height), (1, width)):
        cells = grid.shape[axis]
        place = np.clip((np.arange(size) + 0.5) * cells / size - 0.5, 0, cells - 1)
        lower = np.minimum(place.astype(int), max(cells - 2, 0))
        upper = np.minimum(lower + 1, cells - 1)
        share = (place - lower).reshape((-1, 1) if axis == 0 else (1, -1))
        grid = grid.take(lower, axis) * (1 - share) + grid.take(upper, axis) * share
    return grid


def heat_of(attention: np.ndarray) -> np.ndarray:
    """(H, W) attention summing to 1 -> heat in 0 to 1.

    0 is an even share or less, 1 the map's peak; a map whose peak is under twice an even share stays cooler, so that
    a flat map does not look like a peaked one.
    """
    even = 1 / attention.size
    return np.clip((attention - even) / max(float(attention.max()) - even, even), 0, 1)


def envelope(waveform: np.ndarray, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Least and greatest value in each of at most ``columns`` equal stretches, scaled to the loudest sample."""
    columns = max(1, min(columns, len(waveform)))
    if len(waveform) == 0:
        return np.zeros(1), np.zeros(1)
    starts = np.arange(columns) * len(waveform) // columns
    low, high = np.minimum.reduceat(waveform, starts), np.maximum.reduceat(waveform, starts)
    peak = max(float(high.max()), -float(low.min()), 1e-9)
    return low / peak, high / peak


def _with_heat(frame: np.ndarray, timeline: Timeline, segment: int) -> np.ndarray:
    middle = (segment + 0.5) * timeline.segment_seconds
    # The last segment may reach past the end of the clip, where its event was cut: hence start, not end, decides there.
    eventful = any(
        event.start <= middle < event.end or (event.start <= middle and event.end >= timeline.duration)
        for event in timeline.events
    )
    if timeline.attention is None or not eventful:
        return frame
    import matplotlib

    heat = upsample(heat_of(timeline.attention[segment]), *frame.shape[:2])[..., None]
    color = matplotlib.colormaps["turbo"](0.35 + 0.6 * heat[..., 0])[..., :3] * 255
    share = 0.68 * np.sqrt(heat)
    return (frame * (1 - share) + color * share).astype(np.uint8)


def _draw_frame(axes: Axes, frame: np.ndarray, time: float, inches_per_second: float, cell: float) -> None:
    """The frame at its own aspect, centred on its moment, as large as its cell and the band allow."""
    height = min(axes.get_ylim()[1], (cell - 0.04) * frame.shape[0] / frame.shape[1])
    half = height * frame.shape[1] / frame.shape[0] / inches_per_second / 2
    bottom = (axes.get_ylim()[1] - height) / 2
    limits = axes.get_xlim()
    axes.imshow(
        frame, extent=(time - half, time + half, bottom, bottom + height), aspect="auto", interpolation="antialiased"
    )
    axes.set_xlim(limits)  # imshow moves the limits
    axes.set_ylim(0, height + 2 * bottom)


def _label_if_it_fits(axes: Axes, name: str, middle: tuple[float, float], color: str, pixels: float) -> None:
    label = axes.text(
        *middle, _shortened(name, 40), color=color, fontsize=9.5, ha="center", va="center", parse_math=False
    )  # fmt: skip
    if label.get_window_extent().width > pixels - 8:
        label.remove()  # the strips below name every class by its colour


def _row_name(axes: Axes, name: str, middle: float, color: str | None = None) -> None:
    offset = -18 if color else -6
    label = axes.annotate(
        name, (0, middle), (offset, 0), xycoords=("axes fraction", "data"), textcoords="offset points", ha="right",
        va="center", fontsize=9.5, color=_INK, annotation_clip=False, parse_math=False,
    )  # fmt: skip
    while label.get_window_extent().x0 < 4 and len(name) > 3:  # cut by the edge of the picture
        name = _shortened(name, len(name) - 1)
        label.set_text(name)
    if color:
        axes.plot(
            -0.009, middle, marker="s", markersize=6.5, color=color, transform=axes.get_yaxis_transform(), clip_on=False
        )


# Training and evaluation


def training_curves(metrics: Sequence[Mapping[str, Any]], out: str | Path) -> None:
    """Draw the loss and its terms, and the accuracy in training and on the split that chooses the epoch.

    Args:
        metrics: the lines of ``metrics.jsonl``; each has ``epoch``, ``train`` (loss terms, ``total``, and but for task
            cml ``accuracy``), and some have one more split with ``accuracy``.
        out: the PNG to write.
    """
    epochs = [line["epoch"] for line in metrics]
    figure = _figure(10.5, 3.9)
    loss, accuracy = figure.subplots(1, 2, gridspec_kw={"wspace": 0.2})
    figure.subplots_adjust(left=0.065, right=0.985, top=0.88, bottom=0.13)
    terms = [name for name in metrics[0]["train"] if name != "accuracy"]
    terms.sort(key=lambda name: name != "total")
    for number, name in enumerate(terms):
        style = (
            {"color": _INK, "linewidth": 2.0} if name == "total" else {"color": class_color(number), "linewidth": 1.3}
        )
        loss.plot(epochs, [line["train"][name] for line in metrics], label=name, **style, **_dots(epochs))
    values = [line["train"][name] for line in metrics for name in terms]
    if min(values) > 0 and max(values) > 50 * min(values):
        loss.set_yscale("log")
    loss.set_title("loss in training", loc="left", fontsize=11)
    loss.legend(frameon=False, fontsize=9)

    scores: dict[str, dict[int, Mapping[str, float]]] = {}  # split -> epoch -> what was measured there
    for line in metrics:
        for name, value in line.items():
            if isinstance(value, Mapping) and "accuracy" in value:
                scores.setdefault(name, {})[line["epoch"]] = value
    for name, values_of in sorted(scores.items(), key=lambda item: item[0] != "train"):
        style = {"color": _MUTED, "linewidth": 1.3} if name == "train" else {"color": PALETTE[0], "linewidth": 2.0}
        shown = {epoch: value["accuracy"] for epoch, value in values_of.items()}
        accuracy.plot(list(shown), list(shown.values()), label=name, **style, **_dots(list(shown)))
        if name != "train":
            best = max(shown, key=lambda epoch: shown[epoch])  # the first of equals, as in training
            accuracy.plot(best, shown[best], "o", color=PALETTE[4], label=f"best: {shown[best]:.3f}, epoch {best}")
    every = [value for values_of in scores.values() for value in values_of.values()]
    accuracy.set_ylim(max(0.0, min(value["accuracy"] for value in every) - 0.05), 1.02)
    cml = any("a2v" in value for value in every)
    accuracy.set_title(
        "events found exactly, mean of A2V and V2A" if cml else "segment accuracy", loc="left", fontsize=11
    )
    accuracy.legend(frameon=False, fontsize=9, loc="best")
    for axes in (loss, accuracy):
        _plain(axes)
        axes.set_xlabel("epoch", fontsize=9.5, color=_MUTED)
        axes.set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)
        axes.xaxis.get_major_locator().set_params(integer=True)
    _save(figure, out)


def confusion_picture(confusion: np.ndarray, names: Sequence[str], out: str | Path) -> None:
    """Draw a confusion matrix: rows are the truth, shaded by their share, the counts written in.

    Args:
        confusion: (C+1, C+1) counts of segments, rows truth, background last.
        names: the C class names, or C+1 with background's.
        out: the PNG to write.
    """
    names = _with_background(names, len(confusion))
    rows = confusion.sum(1, keepdims=True)
    share = confusion / np.maximum(rows, 1)
    cell = 0.5 if len(names) <= 16 else 0.34
    margin = 0.35 + 0.085 * max(len(name) for name in names)
    side = cell * len(names)
    figure = _figure(margin + max(side, 4.1) + 0.35, side + margin * 0.7 + 0.65)  # 4.1 inches for the title
    width, height = figure.get_size_inches()
    axes = figure.add_axes((margin / width, 1 - (0.55 + side) / height, side / width, side / height))
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for row in range(len(names)):
        for column in range(len(names)):
            count = int(confusion[row, column])
            if count:
                axes.text(
                    column, row, str(count), ha="center", va="center", fontsize=8.5 if cell == 0.5 else 6.5,
                    color="white" if share[row, column] > 0.55 else _INK,
                )  # fmt: skip
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor", fontsize=9)
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.set_xticks(np.arange(len(names) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(names) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        label.set_parse_math(False)
    _text(figure, margin, height - 0.3, "segments: truth (rows) against prediction (columns)", fontsize=11)
    _save(figure, out)


def class_bars(recalls: Mapping[str, np.ndarray], names: Sequence[str], out: str | Path) -> None:
    """Draw recall per class, one bar per run, as Fig. 8 of the CCLN paper; background is last.

    Args:
        recalls: run name -> (C+1,) recall in 0 to 1, NaN if the class is absent (marked by a dash).
        names: the C class names, or C+1 with background's.
        out: the PNG to write.
    """
    count = len(next(iter(recalls.values())))
    names = _with_background(names, count)
    figure = _figure(min(max(8.0, 1.2 + 0.36 * count * (0.6 + 0.5 * len(recalls))), 16.0), 4.6)
    width, height = figure.get_size_inches()
    foot = 0.2 + 0.048 * max(len(name) for name in names)
    left = max(0.75, 0.25 + 0.065 * len(names[0]))  # where the first slanted name begins
    axes = figure.add_axes((left / width, foot / height, 1 - (left + 0.15) / width, (height - foot - 0.5) / height))
    bar = 0.8 / len(recalls)
    for number, (run, recall) in enumerate(recalls.items()):
        places = np.arange(count) - 0.4 + bar * (number + 0.5)
        shown = np.nan_to_num(100 * np.asarray(recall, dtype=float))
        axes.bar(places, shown, bar * 0.92, label=run, color=class_color(number))
        for place, value in zip(places, recall, strict=True):
            if np.isnan(value):
                axes.text(place, 1, "–", ha="center", fontsize=9, color=_MUTED)
            elif bar > 0.35:
                axes.text(place, 100 * value + 1, f"{100 * value:.0f}", ha="center", fontsize=8, color=_MUTED)
    axes.set_xlim(-0.6, count - 0.4)
    axes.set_ylim(0, 105)
    axes.set_xticks(range(count), names, rotation=35, ha="right", rotation_mode="anchor")
    _plain(axes)
    axes.grid(axis="x", visible=False)
    axes.tick_params(axis="x", labelsize=9.5, labelcolor=_INK)
    for label in axes.get_xticklabels():
        label.set_parse_math(False)
    axes.set_ylabel("recall, % of the class's segments", fontsize=9.5, color=_MUTED)
    axes.legend(frameon=False, fontsize=9.5, ncols=min(len(recalls), 4), loc="lower left", bbox_to_anchor=(-0.01, 1.0))
    _save(figure, out)


# Data


def comparison_picture(relative: Mapping[str, Sequence[float]], out: str | Path, *, title: str = "") -> None:
    """Draw how much the features of each clip differ between two stores, the clips that differ most first.

    Args:
        relative: kind of features -> (N,) relative differences, as `avel.data.compare` gives them, in any order.
            Infinite ones, of clips whose reference is all zeros, are triangles at the top edge.
        out: the PNG to write.
        title: one line, such as the names of the stores.
    """
    figure = _figure(8.4, 4.0)
    axes = figure.add_axes((0.095, 0.13, 0.875, 0.74))
    known = [value for values in relative.values() for value in values if np.isfinite(value)]
    positive = [value for value in known if value > 0]
    logarithmic = bool(positive) and len(positive) == len(known) and max(known) > 20 * min(known)
    top = max([*known, 1e-6]) * (1.5 if logarithmic else 1.08)
    for number, (kind, values) in enumerate(relative.items()):
        ordered = np.sort(np.asarray(values, dtype=float))[::-1]
        places = (np.arange(len(ordered)) + 0.5) / len(ordered) * 100
        finite, color = np.isfinite(ordered), class_color(number)
        median = float(np.quantile(ordered, 0.5, method="nearest"))
        label = f"{kind}: median {median:.3g}, largest {ordered[0]:.3g}"
        dots: dict[str, Any] = {"marker": "o", "markersize": 4} if len(ordered) <= 40 else {}
        axes.plot(places[finite], ordered[finite], color=color, linewidth=2.0, label=label, **dots)
        axes.plot(places[~finite], np.full((~finite).sum(), top), "^", color=color, clip_on=False)
    if logarithmic:
        axes.set_yscale("log")
        axes.set_ylim(min(known) / 1.5, top)
    else:
        axes.set_ylim(0, top)
    axes.set_xlim(0, 100)
    _plain(axes)
    axes.set_xlabel("% of the clips, those that differ most first", fontsize=9.5, color=_MUTED)
    axes.set_ylabel("relative difference of a clip", fontsize=9.5, color=_MUTED)
    axes.legend(frameon=False, fontsize=9.5, loc="upper right")
    _text(figure, 0.25, 3.68, _shortened(title, 90) or "features of the same clips in two stores", fontsize=11)
    _save(figure, out)


def event_curves(curves: Mapping[str, Mapping[str, float]], out: str | Path) -> None:
    """Draw event F1 over the IoU that a found event must reach, one line per run.

    Args:
        curves: run name -> IoU as text -> F1 in 0 to 1, NaN if there are no events.
        out: the PNG to write.
    """
    figure = _figure(6.2, 3.9)
    axes = figure.add_axes((0.1, 0.14, 0.87, 0.75))
    for number, (run, curve) in enumerate(curves.items()):
        places = [float(iou) for iou in curve]
        axes.plot(places, list(curve.values()), "o-", color=class_color(number), label=run, markersize=4)
        for place, value in zip(places, curve.values(), strict=True):
            if len(curves) == 1 and not np.isnan(value):
                axes.text(place, value + 0.03, f"{value:.2f}", ha="center", fontsize=8, color=_MUTED)
    axes.set_ylim(0, 1.08)
    axes.set_xlabel("IoU of found and true event, at least", fontsize=9.5, color=_MUTED)
    axes.set_title("event F1", loc="left", fontsize=11)
    _plain(axes)
    axes.legend(frameon=False, fontsize=9, loc="lower left")
    _save(figure, out)


def localized_events(shares: Mapping[str, Mapping[str, Mapping[str, float]]], out: str | Path) -> None:
    """Draw cross-modality localization by the length of the event, one panel per mode.

    Args:
        shares: mode -> length in segments as text -> ``a2v``, ``v2a`` and ``uniform`` (what a uniform guess would
            find), shares of the events found exactly, and ``events``, how many there are.
        out: the PNG to write.
    """
    figure = _figure(10.5, 4.1)
    panels = figure.subplots(1, len(shares), sharey=True, squeeze=False, gridspec_kw={"wspace": 0.08})[0]
    figure.subplots_adjust(left=0.065, right=0.985, top=0.88, bottom=0.2)
    names = {"a2v": "A2V: audio query", "v2a": "V2A: visual query"}
    for axes, (mode, by_length) in zip(panels, shares.items(), strict=True):
        places = np.arange(len(by_length))
        for number, (direction, name) in enumerate(names.items()):
            values = [100 * value[direction] for value in by_length.values()]
            axes.bar(places - 0.2 + 0.4 * number, values, 0.37, label=name, color=class_color(number))
        uniform = [100 * value["uniform"] for value in by_length.values()]
        axes.step([-0.5, *places + 0.5], [*uniform, uniform[-1]], where="post", color=_INK, label="uniform guess")
        axes.set_xticks(places, [f"{length}\n({value['events']:.0f})" for length, value in by_length.items()])
        axes.set_xlim(-0.6, len(by_length) - 0.4)
        axes.set_ylim(0, 105)
        axes.set_title(f"{mode}: found exactly, %", loc="left", fontsize=11)
        axes.set_xlabel("length of the event in segments (events)", fontsize=9.5, color=_MUTED)
        _plain(axes)
        axes.grid(axis="x", visible=False)
    panels[0].legend(frameon=False, fontsize=9, loc="upper left")
    _save(figure, out)


# Helpers


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, out: str | Path) -> None:
    with replacing(out) as temporary, warnings.catch_warnings():
        # A character that the font lacks is drawn as a box; a warning about fonts would not help the user.
        warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)
        figure.savefig(temporary, format="png", metadata={"Software": None})


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_RULE)
    axes.tick_params(colors=_MUTED, labelsize=9)
    axes.grid(color=_RULE, linewidth=0.6)
    axes.set_axisbelow(True)


def _dots(epochs: Sequence[int]) -> dict[str, Any]:
    return {"marker": "o", "markersize": 3} if len(epochs) < 4 else {}


def _rectangles(times: Sequence[tuple[float, float]], bottom: float, height: float, color: str) -> Any:
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Outline

    top = bottom + height
    corners = [[(a, bottom), (b, bottom), (b, top), (a, top), (a, bottom)] for a, b in times]
    outline = Outline.make_compound_path(*(Outline(shape, closed=True) for shape in corners))
    # Without an edge, and not snapped to pixels: what covers a third of a pixel colours it by a third.
    return PathPatch(outline, facecolor=color, linewidth=0, snap=False)


def _text(figure: Figure, left: float, bottom: float, text: str, **style: Any) -> None:
    width, height = figure.get_size_inches()
    figure.text(left / width, bottom / height, text, parse_math=False, **{"color": _INK, **style})


def _with_background(names: Sequence[str], count: int) -> list[str]:
    names = [_shortened(name, 30) for name in names]
    return [*names, BACKGROUND] if len(names) == count - 1 else names


def _shortened(text: str, most: int) -> str:
    """One line of at most ``most`` characters: the middle goes, since both ends of a file's name tell it apart."""
    text = visible(" ".join(text.split()))
    if len(text) <= most:
        return text
    return f"{text[: most * 2 // 3]}…{text[-(most - most * 2 // 3 - 1) :]}"


def _wrapped(text: str, width: int) -> str:
    import textwrap

    return textwrap.fill(visible(text), width)
