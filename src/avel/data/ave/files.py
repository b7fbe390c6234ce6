"""AVE's own files (Tian et al., ECCV 2018): annotations, splits, labels, and what is known of them.

T = 10 segments of one second and C = 28 classes are facts of this data set; no other module states them.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from avel.data.labels import segment_labels, video_class, video_labels
from avel.errors import AvelError
from avel.reading import LARGE_FILE, open_h5, read_bytes
from avel.types import Span

if TYPE_CHECKING:  # imported where a file is opened: a process that extracts features opens none
    import h5py

#: The 28 event classes; a class's place is its id, background is 28. The order of first appearance in Annotations.txt.
CLASSES = (
    "Church bell",
    "Male speech, man speaking",
    "Bark",
    "Fixed-wing aircraft, airplane",
    "Race car, auto racing",
    "Female speech, woman speaking",
    "Helicopter",
    "Violin, fiddle",
    "Flute",
    "Ukulele",
    "Frying (food)",
    "Truck",
    "Shofar",
    "Motorcycle",
    "Acoustic guitar",
    "Train horn",
    "Clock",
    "Banjo",
    "Goat",
    "Baby cry, infant cry",
    "Bus",
    "Chainsaw",
    "Cat",
    "Horse",
    "Toilet flush",
    "Rodents, rats, mice",
    "Accordion",
    "Mandolin",
)

SEGMENTS = 10  # T, of one second each

#: The file beside simulated data, so that nobody takes them for AVE.
SIMULATED_MARK = "simulated.json"

#: The file that `avel.data.ave.export` writes beside its files: what made the features. AVE's files cannot say it.
EXPORT_MARK = "export.json"

FEATURES, ORDER = "avadataset", "order"  # the key of the one data set in each file

#: What each file may be called: AVE's own name first, then the names that PSP, VSCG and DMIN give it.
NAMES = {
    "annotations": ("Annotations.txt",),
    "visual": ("visual_feature.h5",),
    "audio": ("audio_feature.h5", "audio_features.h5"),
    "pooled visual": ("visual_feature_vec.h5",),
    "labels": ("labels.h5", "right_labels.h5", "right_label.h5"),
    "video labels": ("mil_labels.h5",),
    "proportions": ("prob_label.h5", "prob_labels.h5"),
    "event mask": ("labels_closs.h5",),
    "background visual": ("visual_feature_noisy.h5",),
    "background audio": ("audio_feature_noisy.h5",),
    "background labels": ("labels_noisy.h5",),
    "train": ("train_order.h5",),
    "val": ("val_order.h5",),
    "test": ("test_order.h5",),
    "train_match": ("train_order_match.h5",),
    "val_match": ("val_order_match.h5",),
    "test_match": ("test_order_match.h5",),
}

#: sha256 of the small files as published; those of the feature files are not known here.
OFFICIAL = {
    "Annotations.txt": "0d24a9ec5cd4ceb779ebd83d74e83ec8e55c5e468cede3f320fb57346c9dd321",
    "train_order.h5": "a216fcdd02782ba9d10c9ea79116120eb3be467740e58290e1b340d42a590456",
    "val_order.h5": "5692aec0efb30e4efa49a867a902c1993b4c88a7d3ec19879349e540e7a5d9ca",
    "test_order.h5": "f9bb79defc1f784ca5dda9cdd3ee52af6d24ccb399a1cfab6bf0d373f5681076",
    "train_order_match.h5": "82dc6e59d79179e62e7df8dcb0f648c5003d5dda13262ef10bcb74acc8016bb2",
    "val_order_match.h5": "ad336b6302cbace06c0ff4434112abb1b0353cb12f246d81ea94b7cbbfbc648d",
    "test_order_match.h5": "5c9258d60d0fd6e177c50dfaa5813cf8b91748787703a522d8082d90bf1f453c",
    "mil_labels.h5": "63c1886c78289bcf7e748fa0fe5c18d568dac75a1f015ac41860a78f598c2bd5",
    "labels_closs.h5": "97676082eb1fc9a7a29255032391871c74f00cd74a5eddc57d9aed14ec52acc9",
    "labels_noisy.h5": "1cc2b29e7104d4da26be06b6ff2260d9392cd1d93a096c77efd938843b4ebde1",
    "audio_feature_noisy.h5": "d29b6efa4c985746a1d5205423c6f01bf02cf475af40c2620e4df9260d84c5f4",
}


@dataclass(frozen=True)
class Annotation:
    """A row of Annotations.txt: one event of one video.

    Attributes:
        row: from 0, what the ``*_order.h5`` files index.
        span: class and seconds; one row of AVE has no length.
        video: the YouTube id; 45 videos have two or three rows, each with another class.
    """

    row: int
    span: Span
    video: str

    @property
    def clip_id(self) -> str:
        """Row and video: the name of the clip in a store."""
        return f"{self.row:04d}-{self.video}"


def read_annotations(path: str | Path) -> list[Annotation]:
    """Read ``Category&VideoID&Quality&start&end`` lines, with or without a header; empty lines are skipped.

    Raises:
        AvelError: no such file, not UTF-8 text, a line without exactly five fields, an unknown class, an empty id, or
            times that are not whole seconds with 0 <= start <= end <= 10. The message names file and line.
    """
    path = Path(path)
    form = "lines of Category&VideoID&Quality&start&end"
    try:
        data = read_bytes(path, LARGE_FILE)
        text = data.decode("utf-8-sig")
    except FileNotFoundError:
        raise AvelError(f"no such file: {path}", form, "see docs/ave.md for the files") from None
    except UnicodeDecodeError as error:
        broken = data[: error.start].count(b"\n") + 1
        raise AvelError(f"{path} line {broken}: not UTF-8 text", form, "copy the file again") from error
    annotations: list[Annotation] = []
    for number, line in enumerate(text.split("\n"), start=1):
        fields = line.strip().split("&")
        if fields == [""] or (not annotations and fields[:2] == ["Category", "VideoID"]):
            continue
        place = f"{path} line {number} (row {len(annotations)})"
        if len(fields) != 5:
            raise AvelError(
                f"{place}: {len(fields)} fields in {line[:60]!r}", form, "correct the line, or copy the file again"
            )
        label, video, _, begin, end = (value.strip() for value in fields)
        if label not in CLASSES:
            near = difflib.get_close_matches(label, CLASSES, 1)
            raise AvelError(
                f"{place}: {label[:60]!r} is not a class of AVE",
                f"one of its 28 classes{f', such as {near[0]!r}' if near else ''}",
                "correct the line; for your own classes, write a CSV (docs/data.md)",
            )
        if not video:
            raise AvelError(f"{place}: no video id", form, "correct the line, or copy the file again")
        if not (begin.isascii() and begin.isdecimal() and end.isascii() and end.isdecimal()) or not (
            int(begin) <= int(end) <= SEGMENTS
        ):
            raise AvelError(
                f"{place}: an event from {begin[:20]!r} to {end[:20]!r} s",
                f"whole seconds, 0 <= start <= end <= {SEGMENTS}",
                "correct the line, or copy the file again",
            )
        annotations.append(Annotation(len(annotations), Span(label, float(begin), float(end)), video))
    if not annotations:
        raise AvelError(f"{path} has no rows", form, "copy the file again")
    return annotations


def full_labels(annotations: Sequence[Annotation]) -> np.ndarray:
    """(N, 10) int64 class ids, background = 28: ``labels.h5`` as ids; below 28 it is ``labels_closs.h5``."""
    return np.stack([segment_labels((each.span,), CLASSES, SEGMENTS, 1.0) for each in annotations])


def weak_labels(
    annotations: Sequence[Annotation], form: Literal["onehot", "proportion"] = "onehot", *, background_videos: int = 0
) -> np.ndarray:
    """(N + background_videos, 29) float32: ``mil_labels.h5``, or ``prob_label.h5`` if ``form`` is ``proportion``.

    Args:
        annotations: N rows.
        form: see `avel.data.labels.video_labels`.
        background_videos: number of rows of background alone, added at the end (AVE has features of 178).
    """
    segments = full_labels(annotations)
    video = [video_class((each.span,), CLASSES, row) for each, row in zip(annotations, segments, strict=True)]
    background = len(CLASSES)
    segments = np.concatenate([segments, np.full((background_videos, SEGMENTS), background)])
    return video_labels(segments, np.array([*video, *[background] * background_videos]), background, form)


def event_mask(annotations: Sequence[Annotation]) -> np.ndarray:
    """(N, 10) bool, whether a segment holds the event: the labels of cross-modality localization."""
    return full_labels(annotations) < len(CLASSES)


def read_order(path: str | Path, num_rows: int) -> np.ndarray:
    """The rows of one split, (n,) int64, in the file's order.

    Raises:
        AvelError: no such file, or an index out of range or twice in it; the message names file, key and place.
    """
    with open_dataset(path, ORDER) as dataset:
        form = f"a list of rows of Annotations.txt, 0 to {num_rows - 1}"
        if dataset.ndim != 1 or dataset.dtype.kind not in "iu":
            raise damaged(path, ORDER, f"{dataset.dtype} of shape {dataset.shape}", form)
        order = read_rows(dataset, path)
    outside = np.flatnonzero((order < 0) | (order >= num_rows))
    if len(outside):
        raise damaged(path, ORDER, f"row {outside[0]} is {order[outside[0]]}", form)
    first: dict[int, int] = {}
    for place, row in enumerate(order.tolist()):
        if first.setdefault(row, place) != place:
            raise damaged(path, ORDER, f"rows {first[row]} and {place} are both {row}", "every index once")
    return order.astype(np.int64)


@contextmanager
def open_dataset(path: str | Path, key: str) -> Iterator[h5py.Dataset]:
    """``with open_dataset(path, key) as dataset``: an h5py data set.

    Raises:
        AvelError: no such file, not a whole HDF5 file, or no data set of that key; file and key are named.
    """
    import h5py

    with ExitStack() as stack:
        try:
            file = stack.enter_context(open_h5(path))
        except OSError as error:
            raise AvelError(
                f"cannot read {path}: {_first_line(error)}",
                f"a whole HDF5 file with the data set {key!r}",
                "compare its size with the original's and copy it again (docs/ave.md)",
            ) from error
        try:
            dataset = file.get(key)
        except (KeyError, OSError, RuntimeError, ValueError) as error:
            raise damaged(path, key, _first_line(error), "a data set that can be opened") from error
        if not isinstance(dataset, h5py.Dataset):
            keys = ", ".join(map(repr, file)) or "nothing"
            raise damaged(path, key, f"not there; the file holds {keys}", f"a data set called {key!r}")
        yield dataset


def read_rows(dataset: h5py.Dataset, path: str | Path, rows: slice = slice(None), out: np.ndarray | None = None) -> Any:
    """``dataset[rows]``, into ``out`` if it is given.

    Raises:
        AvelError: they cannot be read; file, key and rows are named.
    """
    try:
        if out is None:
            return dataset[rows]
        dataset.read_direct(out, rows)
        return out
    except (OSError, RuntimeError, ValueError) as error:
        where = f"rows {rows.start} to {rows.stop - 1}: " if rows.stop else ""
        key = str(dataset.name).lstrip("/")
        raise damaged(path, key, f"{where}{_first_line(error)}", "data that can be read") from error


@contextmanager
def rows_file(
    path: Path,
    shape: tuple[int, ...],
    dtype: Literal["float32", "float64"],
    attributes: Mapping[str, Any] | None = None,
) -> Iterator[Callable[[int, np.ndarray], None]]:
    """Give ``write(row, values)`` for a new HDF5 file of one contiguous array under the key of AVE's features.

    HDF5 only lays the file out; rows are then written straight to their place, by several threads at once. On a full
    disk that raises OSError, while HDF5 may crash.

    Args:
        path: of the file, which does not exist yet.
        shape: of the array, rows first.
        dtype: of the array; values are cast to it.
        attributes: of the data set.

    Raises:
        OSError: the disk is full, or a file-size limit was hit.
    """
    import h5py

    little_endian = np.dtype(dtype).newbyteorder("<")
    with open(path, "wb") as empty:
        empty.truncate(little_endian.itemsize * prod(shape))  # a limit shows here, not within HDF5
    with h5py.File(path, "w", locking=False) as file:  # `replacing` holds a lock of its own
        create = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        create.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)  # so that the array has its place now
        create.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        create.set_obj_track_times(False)  # the same values give the same bytes
        space = h5py.h5s.create_simple(shape)
        kind = h5py.h5t.py_create(little_endian)
        dataset = h5py.h5d.create(file.id, FEATURES.encode(), kind, space, create)
        begin, row_bytes = dataset.get_offset(), little_endian.itemsize * prod(shape[1:])
        h5py.Dataset(dataset).attrs.update(attributes or {})
        del dataset
    handle = os.open(path, os.O_WRONLY)
    try:

        def write(row: int, values: np.ndarray) -> None:
            left, at = memoryview(values.astype(little_endian).tobytes()), begin + row * row_bytes
            while left:  # a nearly full disk shortens a write before it fails one
                written = os.pwrite(handle, left, at)
                left, at = left[written:], at + written

        yield write
    finally:
        os.close(handle)


def damaged(path: str | Path, key: str, found: str, expected: str) -> AvelError:
    """The error for a file with the wrong content."""
    return AvelError(f"{path}, key {key}: {found}", expected, "copy the file again (docs/ave.md)")


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
