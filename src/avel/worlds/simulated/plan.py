"""The plan of the simulated data set: rows, classes, events, repeated videos and splits. No feature is made here.

The plan follows AVE's own statistics, the counts below; at other sizes they are scaled.

There are two set versions, and both are frozen. Version 2 gives the match family AVE's classes at any size that
allows it; version 1 does so only near AVE's own size. In a set of 500 rows or more nothing else differs: rows, features
and standard splits are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from avel.data.ave.files import CLASSES, SEGMENTS
from avel.errors import AvelError

Rng = np.random.Generator

VERSIONS = (1, 2)
VERSION = VERSIONS[-1]  # the default; simulated.json says which it was
SEED_KEY = 1  # part of every seed, in both versions

SPLITS = ("train", "val", "test")

# --- Counted in AVE's Annotations.txt and *_order.h5 (public files); classes in the order of `CLASSES`. ---
VIDEOS, BACKGROUND_VIDEOS = 4143, 178
SPLIT_ROWS = (3339, 402, 402)
CLASS_ROWS = np.array(
    [
        [188, 176, 171, 184, 188, 175, 178, 187, 172, 163, 182, 138, 102, 99],
        [186, 176, 160, 183, 100, 83, 69, 160, 60, 64, 180, 109, 154, 156],
    ]
).ravel()
FULL_ROWS = np.array(  # of these, events of all ten seconds
    [
        [142, 48, 35, 136, 84, 96, 113, 153, 162, 147, 115, 116, 69, 78],
        [179, 159, 154, 178, 80, 32, 36, 96, 17, 11, 28, 47, 107, 132],
    ]
).ravel()
PARTIAL_EVENTS = {  # first second -> events that end after 2, 3, 4 ... seconds from there; the last ends at 10 s
    0: (54, 71, 83, 74, 91, 56, 49, 21),
    1: (9, 11, 8, 4, 9, 7, 2, 74),
    2: (9, 7, 11, 8, 11, 4, 60),
    3: (20, 15, 8, 6, 7, 72),
    4: (10, 12, 7, 6, 82),
    5: (9, 7, 8, 98),
    6: (17, 5, 92),
    7: (10, 92),
    8: (76,),
}
EMPTY_ROW = 26  # the row whose event has no length
REPEATED = {  # videos of two or three rows, by the splits of their rows
    ("train", "train"): 26,
    ("train", "val"): 10,
    ("train", "test"): 7,
    ("train", "train", "test"): 1,
    ("val", "val"): 1,
}
MATCH_TEST_SHARE = 0.5  # at most so many of the events of 2-9 s go to the match family's test split
MATCH_CLASSES = {"train": 26, "val": 3, "test": 28}  # how many classes each of AVE's match splits holds
MATCH_LEAST = 47  # rows that have every class, so that version 2 can give the training split as many
MATCH_WHOLE = 114  # rows that have every class twice, so that it can give the test split as many, too
MATCH_VAL = np.array([1, 1, 0.75])  # the match family's val split takes at most so much of the first three classes

#: Classes that look and sound alike; a class in no group resembles no other.
GROUPS = {
    "strings": ("Violin, fiddle", "Ukulele", "Acoustic guitar", "Banjo", "Mandolin"),
    "voices": ("Male speech, man speaking", "Female speech, woman speaking", "Baby cry, infant cry"),
    "vehicles": (
        "Fixed-wing aircraft, airplane",
        "Race car, auto racing",
        "Helicopter",
        "Truck",
        "Motorcycle",
        "Train horn",
        "Bus",
    ),
    "animals": ("Bark", "Goat", "Cat", "Horse", "Rodents, rats, mice"),
}
GROUP_OF = {name: group for group, names in GROUPS.items() for name in names}

ID_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
#: A real id is 64 bits in letters of 6, so that its last letter is one of 16. These are the other 48.
LAST_LETTERS = "".join(sorted(set(ID_LETTERS) - set("AEIMQUYcgkosw048")))


@dataclass(frozen=True)
class SimulatedPlan:
    """What every row holds.

    Attributes:
        classes: (N,) class id of each row; rows are grouped by class.
        starts: (N,) first second of the event.
        ends: (N,) second after its last; one row at most has ``starts == ends``.
        videos: (N,) number of the video a row shows; rows of one number share their features and their seconds.
        ids: made-up video ids, 11 characters, one for each number.
        splits: ``train``, ``val``, ``test`` and the same with ``_match`` -> rows, in the order of the file.
        background_videos: number of videos of background alone; they have no row.
    """

    classes: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    videos: np.ndarray
    ids: tuple[str, ...]
    splits: dict[str, np.ndarray]
    background_videos: int

    def match_classes(self) -> dict[str, int]:
        """How many classes each split of the match family holds."""
        return {name: len(np.unique(self.classes[self.splits[f"{name}_match"]])) for name in SPLITS}

    def annotations(self) -> str:
        """The text of Annotations.txt: ``Category&VideoID&Quality&start&end``, without a header."""
        rows = zip(self.classes, self.videos, self.starts, self.ends, strict=True)
        return "".join(f"{CLASSES[label]}&{self.ids[video]}&good&{start}&{end}\n" for label, video, start, end in rows)

    def labels(self) -> np.ndarray:
        """(N, T) int64 class ids, background = C."""
        seconds = np.arange(SEGMENTS)
        inside = (seconds >= self.starts[:, None]) & (seconds < self.ends[:, None])
        return np.where(inside, self.classes[:, None], len(CLASSES))

    def video_rows(self) -> list[list[int]]:
        """The rows of each video, in order."""
        rows: list[list[int]] = [[] for _ in self.ids]
        for row, video in enumerate(self.videos.tolist()):
            rows[video].append(row)
        return rows


def plan(
    *,
    videos: int = VIDEOS,
    train_videos: int | None = None,
    val_videos: int | None = None,
    test_videos: int | None = None,
    background_videos: int = BACKGROUND_VIDEOS,
    seed: int = 0,
    version: int = VERSION,
) -> SimulatedPlan:
    """Decide what every row holds; no feature is made yet.

    At 4143 rows, counts of classes, of events by start and end, of full-length events by class, of repeated videos and
    of splits are AVE's. At other sizes they are scaled, and rounded to the largest remainders.

    The match family is built as AVE's is: its test split holds only events of 2-9 s, its validation split the first
    rows that are left (so the first classes), its training split the rest. If there are too few such events for the
    size asked for, its test split takes half of them, and its training split is larger.

    With MATCH_LEAST rows or more, version 2 also gives these splits AVE's classes, whatever sizes are asked for: at
    least 26 in training; at most the first three in validation, and no more rows than these have; in test each class
    that has two rows, and with MATCH_WHOLE rows or more all 28. As in AVE, the first two classes are in training only
    if validation leaves rows of them.

    Args:
        videos: number of rows N, at least 3. If all three splits are given, N is their sum instead.
        train_videos: rows of the training split; None for AVE's share of what the others leave.
        val_videos: the same for validation.
        test_videos: the same for testing.
        background_videos: videos of background alone, at least 0.
        seed: the same seed gives the same plan.
        version: 1 or 2, see above.

    Raises:
        AvelError: impossible numbers.
    """
    sizes = _split_sizes(videos, (train_videos, val_videos, test_videos))
    if background_videos < 0:
        raise AvelError(f"background_videos = {background_videos}", "a whole number, at least 0", "give another number")
    if seed < 0:
        raise AvelError(f"seed = {seed}", "a whole number, at least 0", "give another seed")
    if version not in VERSIONS:
        raise AvelError(
            f"version = {version}", f"one of {', '.join(map(str, VERSIONS))}", f"leave it out to take {VERSION}"
        )
    rng = np.random.default_rng((SEED_KEY, seed, 5))  # 0 to 4 are the features'
    rows = sum(sizes)
    like_ave = version > 1 and rows >= MATCH_LEAST
    counts = apportion(CLASS_ROWS, rows)
    classes = np.repeat(np.arange(len(CLASSES)), counts)
    starts, ends = _events(rng, counts, least_partial=int(like_ave))
    standard = _stratified(rng, counts, sizes, starts < ends)
    video = _repeated(rng, classes, starts, ends, standard)
    partial = np.flatnonzero((ends - starts >= 2) & (ends - starts < SEGMENTS))
    drawn, test_size, val_size = rng.permutation(partial), sizes[2], sizes[1]
    test_size = min(test_size, max(1, round(len(partial) * MATCH_TEST_SHARE)))
    test = _of_every_class(drawn, classes, test_size) if like_ave else drawn[:test_size]
    left = np.setdiff1d(np.arange(rows), test)
    if like_ave:
        val_size = min(val_size, int(np.bincount(classes[left])[: len(MATCH_VAL)] @ MATCH_VAL))
    match = {"train_match": left[val_size:], "val_match": left[:val_size], "test_match": test}
    ids = _ids(rng, int(video.max()) + 1)
    return SimulatedPlan(classes, starts, ends, video, ids, {**standard, **match}, background_videos)


def apportion(weights: np.ndarray, total: int, room: np.ndarray | None = None) -> np.ndarray:
    """Share ``total`` out by weight, rounded to the largest remainders, no part above its ``room``; int64."""
    room = np.full(len(weights), total) if room is None else room
    exact = weights * total / weights.sum()
    parts = np.minimum(np.floor(exact).astype(np.int64), room)
    while (missing := total - int(parts.sum())) > 0:
        open_parts = np.flatnonzero(parts < room)
        order = open_parts[np.argsort(parts[open_parts] - exact[open_parts], kind="stable")]
        parts[order[:missing]] += 1
    return parts


def _split_sizes(videos: int, asked: Sequence[int | None]) -> tuple[int, int, int]:
    """Rows of train, val and test."""
    given = {name: size for name, size in zip(SPLITS, asked, strict=True) if size is not None}
    for name, size in {"videos": videos, **{f"{name}_videos": size for name, size in given.items()}}.items():
        least = 3 if name == "videos" else 1
        if size < least:
            raise AvelError(f"{name} = {size}", f"a whole number, at least {least}", "give another number")
    told, total = ", ".join(f"{name} {size}" for name, size in given.items()), sum(given.values())
    if len(given) == len(SPLITS):
        if videos not in (VIDEOS, total):  # the default was not asked for
            raise AvelError(f"{told}, but {videos} videos", f"splits of {videos} together", "leave the number out")
        return given["train"], given["val"], given["test"]
    open_splits = [name for name in SPLITS if name not in given]
    left = videos - total
    if left < len(open_splits):
        raise AvelError(
            f"{told} of {videos} videos leave {left} for {' and '.join(open_splits)}",
            "at least one video for each split",
            f"ask for {total + len(open_splits)} videos or more, or for smaller splits",
        )
    weights = np.array([SPLIT_ROWS[SPLITS.index(name)] for name in open_splits])
    # rounded one by one, and train takes the rest: val and test stay as large as each other
    parts = np.maximum(1, np.round(weights * left / weights.sum())).astype(np.int64)
    parts[0] = left - parts[1:].sum()
    sizes = given | dict(zip(open_splits, parts.tolist(), strict=True))
    return sizes["train"], sizes["val"], sizes["test"]


def _of_every_class(drawn: np.ndarray, classes: np.ndarray, size: int) -> np.ndarray:
    """The first ``size`` of the rows drawn, but at least one row of every class, and never all rows of a class."""
    of = classes[drawn]
    rank = np.array([(of[:at] == label).sum() for at, label in enumerate(of)])  # 0: the class's first row drawn
    drawn, rank = (each[rank < np.bincount(classes)[of] - 1] for each in (drawn, rank))
    firsts, others = np.flatnonzero(rank == 0), np.flatnonzero(rank > 0)
    return drawn[np.sort(np.concatenate([firsts, others[: max(0, size - len(firsts))]]))]


def _events(rng: Rng, counts: np.ndarray, least_partial: int) -> tuple[np.ndarray, np.ndarray]:
    """(N,) starts and (N,) ends. Which rows of a class are full-length is drawn; how many is not.

    At least ``least_partial`` rows of each class are not full-length.
    """
    rows = int(counts.sum())
    full = np.zeros(rows, dtype=bool)
    first = np.cumsum(counts) - counts
    empty = EMPTY_ROW if rows >= VIDEOS // 2 and counts[0] > EMPTY_ROW else None
    for at, count, share in zip(first, counts, FULL_ROWS / CLASS_ROWS, strict=True):
        free = np.setdiff1d(np.arange(at, at + count), [] if empty is None else [empty])
        full[rng.permutation(free)[: min(len(free), round(share * count), count - least_partial)]] = True
    if full.all():  # a tiny set of a few steady classes: the match family's test split needs one short event
        full[-1] = False
    kinds = [(start, start + 2 + k) for start, ends in PARTIAL_EVENTS.items() for k in range(len(ends))]
    weights = np.array([count for ends in PARTIAL_EVENTS.values() for count in ends])
    partial = np.flatnonzero(~full)
    partial = partial[partial != empty] if empty is not None else partial
    dealt = rng.permutation(np.repeat(np.arange(len(kinds)), apportion(weights, len(partial))))
    starts, ends = np.zeros(rows, dtype=np.int64), np.where(full, SEGMENTS, 0)
    starts[partial], ends[partial] = np.array(kinds)[dealt].reshape(-1, 2).T
    return starts, ends


def _stratified(
    rng: Rng, counts: np.ndarray, sizes: tuple[int, int, int], may_leave: np.ndarray
) -> dict[str, np.ndarray]:
    """Standard splits: every class in proportion; val and test of one size have the same rows of each class.

    ``may_leave`` (N,) is False if a row must be trained on, as AVE's event without length is.
    """
    _, val_size, test_size = sizes
    room = np.array([may_leave[at : at + n].sum() for at, n in zip(np.cumsum(counts) - counts, counts, strict=True)])
    if val_size == test_size and (room // 2).sum() >= test_size:
        val = test = apportion(counts, test_size, room // 2)
    else:
        test = apportion(counts, test_size, room)
        val = apportion(counts, val_size, room - test)
    rows: dict[str, list[np.ndarray]] = {name: [] for name in SPLITS}
    for label, at in enumerate(np.cumsum(counts) - counts):
        own = rng.permutation(np.arange(at, at + counts[label]))
        own = own[np.argsort(~may_leave[own], kind="stable")]  # rows that must be trained on come last
        parts = np.split(own, [test[label], test[label] + val[label]])
        for name, part in zip(("test", "val", "train"), parts, strict=True):
            rows[name].append(rng.permutation(part))
    return {name: np.concatenate(parts) for name, parts in rows.items()}


def _repeated(
    rng: Rng, classes: np.ndarray, starts: np.ndarray, ends: np.ndarray, splits: dict[str, np.ndarray]
) -> np.ndarray:
    """(N,) video numbers. As in AVE, a video's rows differ in class and share their seconds; most are of one group."""
    rows = len(classes)
    wanted = apportion(np.array(list(REPEATED.values())), round(sum(REPEATED.values()) * rows / VIDEOS))
    video, used = np.arange(rows), np.zeros(rows, dtype=bool)
    group = np.array([GROUP_OF.get(name, name) for name in CLASSES])[classes]
    for kind, number in sorted(zip(REPEATED, wanted, strict=True), key=lambda each: -len(each[0])):
        candidates = iter(rng.permutation(splits[kind[-1]]))
        for _ in range(number):
            for first in candidates:
                alike = (starts == starts[first]) & (ends == ends[first]) & (ends > starts) & ~used
                found = [int(first)] if alike[first] else []
                for split in kind[:-1] if found else ():
                    near = [row for row in splits[split] if alike[row] and classes[row] not in classes[found]]
                    near = [row for row in near if group[row] == group[first]]
                    found += [int(rng.choice(near))] if near else []
                if len(found) == len(kind):
                    used[found] = True
                    video[found] = min(found)
                    break
    return np.unique(video, return_inverse=True)[1]


def _ids(rng: Rng, number: int) -> tuple[str, ...]:
    """Different made-up ids of 11 characters that no real video can have."""
    ids: dict[str, None] = {}
    while len(ids) < number:
        letters = rng.choice(list(ID_LETTERS), 10)
        ids["".join(letters) + str(rng.choice(list(LAST_LETTERS)))] = None
    return tuple(ids)
