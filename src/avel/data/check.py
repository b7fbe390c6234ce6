"""Whether data can be trained on: `check` reads a feature store or a folder of AVE's files.

Every feature is read once, in pieces of bounded size, by a few threads; what was found is one line each.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable
from contextlib import closing
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np

from avel.data.ave.check import check_ave
from avel.data.ave.files import CLASSES, NAMES
from avel.data.labels import consecutive_windows, segment_labels
from avel.data.measure import (
    LISTED,
    Kind,
    Level,
    Measured,
    Places,
    in_threads,
    listed,
    measure,
    of_values,
    of_zeros,
    refused,
)
from avel.data.splits import BACKGROUND_SPLIT, FAMILIES, KNOWN, known_split, meant_split
from avel.data.store import WORK, Store, StoredClip, checksum, open_store
from avel.errors import AvelError
from avel.files import is_work_folder
from avel.text import counted
from avel.types import Finding, Progress, Span


def check(path: str | Path, *, window: int = 10, progress: Progress | None = None) -> list[Finding]:
    """Everything worth knowing about a feature store, or of a folder of AVE's files: one line per finding.

    Damage is a finding of level ``error``, not an exception. All features are read.

    Args:
        path: a folder with ``store.json``, or one that holds files of `avel.data.ave.files.NAMES`.
        window: number T of segments that a model would see at once. It matters for a store only: AVE's clips have 10.
        progress: called as ``progress("check", clips done, clips in all)`` or ``progress(file, rows done, in all)``.

    Raises:
        AvelError: ``path`` is neither, or the window is empty.
    """
    path = Path(path)
    if window < 1:
        raise AvelError(f"a window of {window} segments", "at least 1", "give another --window")
    if os.path.lexists(path / "store.json") or is_work_folder(path / WORK):
        findings = _check_store(path, window, progress)
    elif any((path / name).is_file() for names in NAMES.values() for name in names):
        findings = check_ave(path, progress)
    else:
        raise AvelError(
            f"{path} is neither a feature store nor a folder of AVE's files",
            "a folder with store.json, or one with Annotations.txt, visual_feature.h5, audio_feature.h5, ...",
            "give the --out of `avel extract`, or the folder with AVE's files (docs/ave.md)",
        )
    return [replace(each, text=" ".join(each.text.split())) for each in findings]  # an id can hold a line break


def exit_code(findings: Iterable[Finding]) -> int:
    """0, or 1 if one of the findings is an error."""
    return int(any(finding.level == "error" for finding in findings))


def _check_store(path: Path, window: int, progress: Progress | None) -> list[Finding]:
    try:
        store = open_store(path)
    except AvelError as error:
        return [refused(str(path), error)]
    findings = _of_store(store)
    if store.clips:
        findings += _of_features(store, progress)
    findings += _of_splits(store) + _of_labels(store) + _of_events(store) + _of_classes(store)
    return findings + _of_windows(store, window)


def _of_store(store: Store) -> list[Finding]:
    """What `store.json` says about the store and its clips."""
    place = "store.json"
    total = sum(clip.segments for clip in store.clips)
    shape = f"visual (T, {store.grid[0]}, {store.grid[1]}, {store.visual_dim}), audio (T, {store.audio_dim})"
    text = f"{counted(len(store.clips), 'clip')}, {counted(total, 'segment')} of {store.segment_seconds:g} s, {shape}"
    findings = [
        Finding(
            "ok" if store.clips else "error",
            place,
            f"{text}, {counted(len(store.classes), 'class')}",
        )
    ]
    for kind in ("visual", "audio"):
        name, tag = (store.extractors[kind].get(key) for key in ("name", "tag"))
        if tag:
            findings.append(Finding("ok", kind, f"extractor {name}, tag {tag}"))
        else:
            findings.append(
                Finding("error", kind, "no tag says what made the features, so no model can be matched to them")
            )
    if store.origin:
        findings.append(Finding("note" if "simulated" in store.origin else "ok", place, f"origin: {store.origin}"))
    doubled = [name for name, number in Counter(clip.id for clip in store.clips).items() if number > 1]
    findings += listed("error", place, "ids given to several clips", doubled)
    findings += listed("error", place, "clips without any segment", [c.id for c in store.clips if c.segments < 1])
    mute = [clip.id for clip in store.clips if not clip.audio_valid]
    return findings + listed("note", place, "clips without valid audio (audio_valid is false)", mute)


def _of_features(store: Store, progress: Progress | None) -> list[Finding]:
    """Every feature: whether it can be read, is what was written, and is a number."""
    starts = np.cumsum([0, *(clip.segments for clip in store.clips)])
    seen: dict[Kind, Measured] = {"visual": Measured(), "audio": Measured()}
    wrong: dict[str, list[str]] = defaultdict(list)
    tasks = ((store, index, int(starts[index])) for index in range(len(store.clips)))
    with closing(in_threads(_read_clip, tasks)) as results:
        for index, (cause, measured) in enumerate(results):
            if cause:
                wrong[cause].append(store.clips[index].id)
            for kind, of_clip in measured.items():
                seen[kind].add(of_clip)
            if progress:
                progress("check", index + 1, len(store.clips))
    findings = []
    for cause in list(wrong)[:LISTED]:
        findings += listed("error", "shards", f"{cause}: clips", wrong.pop(cause))
    findings += listed(
        "error", "shards", "clips that cannot be read either", [i for ids in wrong.values() for i in ids]
    )
    if not findings:
        size = starts[-1] * store.settings.segment_bytes
        findings.append(Finding("ok", "shards", f"every checksum is right: {size / 1e6:.1f} MB in float16 and float32"))
    places = Places("clip", [clip.id for clip in store.clips], starts)
    valid = np.array([clip.audio_valid for clip in store.clips])
    for kind in seen:
        findings += of_values(kind, kind, seen[kind], places)
        findings += of_zeros(kind, kind, seen[kind], places, valid if kind == "audio" else None)
    return findings


def _read_clip(store: Store, index: int, first: int) -> tuple[str, dict[Kind, Measured]]:
    """What is wrong with the features of a clip, "" for nothing, and what they are."""
    try:
        visual, audio = store.visual(index), store.audio(index)
    except AvelError as error:
        return error.found, {}
    arrays = visual.numpy(), audio.numpy()
    cause = "" if checksum(*arrays) == store.clips[index].checksum else "features that differ from their checksum"
    return cause, {"visual": measure(arrays[0], first, "visual"), "audio": measure(arrays[1], first, "audio")}


def _of_splits(store: Store) -> list[Finding]:
    """Whether the splits of a family share no clip and leave none out, and whether they share videos."""
    there = store.splits()
    if not there:
        return [Finding("note", "splits", "none: nothing says what to train on and what to test on")]
    findings = []
    others = [name for name in there if name == BACKGROUND_SPLIT or name not in KNOWN]
    members = {name: [clip for clip in store.clips if name in clip.splits] for name in there}
    for family in FAMILIES.values():
        names = [name for name in family if name in there]
        if not names:
            continue
        place = f"splits {', '.join(names)}"
        disjoint = True
        for one, other in combinations(names, 2):
            both = [clip for clip in members[one] if other in clip.splits]
            videos = {clip.video for clip in members[one]} & {clip.video for clip in members[other]}
            shared = sorted(videos - {clip.video for clip in both})
            disjoint &= not both
            pair = f"splits {one} and {other}"
            findings += listed("error", pair, "clips in both", [clip.id for clip in both])
            findings += listed("note", pair, "videos with clips in both", shared)
        lacking = [name for name in family if name not in names]
        if lacking:
            findings.append(Finding("note", place, f"no clip in {' and '.join(lacking)}"))
        elsewhere = {*names, *others}
        outside = [c.id for c in store.clips if c.spans is not None and not elsewhere & {*c.splits}]
        findings += listed("note", place, "labelled clips in none of them", outside)
        if disjoint and not outside:
            sizes = " + ".join(str(len(members[name])) for name in names)
            findings.append(Finding("ok", place, f"disjoint and complete: {sizes} clips"))
    if BACKGROUND_SPLIT in there:
        number = counted(len(members[BACKGROUND_SPLIT]), "clip")
        findings.append(Finding("ok", f"split {BACKGROUND_SPLIT}", f"{number} for the training of task weak"))
    return findings + [_of_other_split(name, len(members[name])) for name in others if name != BACKGROUND_SPLIT]


def _of_other_split(name: str, number: int) -> Finding:
    """What becomes of the clips of a split that nothing trains on or tests on by itself."""
    known = known_split(name)
    meant = repr(known) if known else meant_split(name)
    place, left_out = f"split {name!r}", f"{counted(number, 'clip')} that avel neither trains nor tests on"
    if meant:
        return Finding(
            "error", place, f"{left_out}: the split is called {meant} here; write that into the CSV and extract again"
        )
    return Finding("note", place, f"{left_out} by itself; `avel evaluate --split` scores them")


_EVENT_FINDINGS: tuple[tuple[str, Level, str], ...] = (
    ("unknown", "error", "with a label that is not among the classes"),
    ("impossible", "error", "with impossible times"),
    ("outside", "error", "starting after the end of the clip"),
    ("overlapping", "error", "overlapping, although AVEL allows one at a time"),
    ("late", "note", "ending after the end of the clip"),
    ("empty", "note", "without length, so that no segment has their label"),
    ("short", "note", "too short to cover half of a segment, so that none has their label"),
)


def _of_labels(store: Store) -> list[Finding]:
    """Whether the events can be where they are said to be."""
    labelled = [clip for clip in store.clips if clip.spans is not None]
    unlabelled = [clip.id for clip in store.clips if clip.spans is None]
    findings = listed("note", "labels", "clips without labels, which cannot be trained on", unlabelled)
    found: dict[str, list[str]] = defaultdict(list)
    for clip in labelled:
        spans = clip.spans or ()
        for span in spans:
            kind = _wrong_with(span, clip, store)
            if kind:
                found[kind].append(f"{clip.id} {_times(span)}")
        for one, other in pairwise(sorted(spans, key=lambda span: (span.start, span.end))):
            if other.start < one.end:
                found["overlapping"].append(f"{clip.id} {_times(one)} and {_times(other)}")
    for kind, level, text in _EVENT_FINDINGS:
        findings += listed(level, "labels", f"events {text}", found[kind])
    used = {span.label for clip in labelled for span in clip.spans or ()}
    unused = [name for name in store.classes if labelled and name not in used]
    findings += listed("note", "labels", "classes in no clip", unused)
    events = sum(len(clip.spans or ()) for clip in labelled)
    if events and not any(found.values()):
        findings.append(Finding("ok", "labels", f"{counted(events, 'event')} in {counted(len(labelled), 'clip')}"))
    return findings


def _of_events(store: Store) -> list[Finding]:
    """Whether there is an event to learn, and one in each split, so that answering background does not score 100%."""
    labelled = [clip for clip in store.clips if clip.spans is not None]
    eventful = [clip for clip in labelled if any(_wrong_with(s, clip, store) in ("", "late") for s in clip.spans or ())]
    nothing = "no segment with an event in any of"
    if labelled and not eventful:
        text = f"{nothing} {counted(len(labelled), 'labelled clip')}, so there is nothing to learn"
        return [Finding("error", "labels", text)]
    findings = []
    for name in (name for family in FAMILIES.values() for name in family):
        members = [clip for clip in labelled if name in clip.splits]
        if members and not any(name in clip.splits for clip in eventful):
            findings.append(Finding("error", f"split {name}", f"{nothing} its {counted(len(members), 'clip')}"))
    return findings


def _of_classes(store: Store) -> list[Finding]:
    """Whether every class can be learnt and tested; a part of AVE need not have all of AVE's classes."""
    level: Level = "note" if store.classes == CLASSES else "error"
    clips: dict[str, list[StoredClip]] = {name: [] for name in store.classes}
    for clip in store.clips:
        for label in {span.label for span in clip.spans or ()} & set(store.classes):  # others are reported as unknown
            clips[label].append(clip)
    alone = [f"{label} ({of[0].id})" for label, of in clips.items() if len({clip.video for clip in of}) == 1]
    findings = listed(level, "classes", "in one video only, so no other is left to test them on", alone)
    for split in ("val", "test") if "train" in store.splits() else ():
        unseen = []
        for label, of in clips.items():
            here = [clip.id for clip in of if split in clip.splits]
            if here and not any("train" in clip.splits for clip in of):
                unseen.append(f"{label} ({here[0]})")
        findings += listed(level, f"classes of split {split}", "in no clip of split train", unseen)
    return findings


def _wrong_with(span: Span, clip: StoredClip, store: Store) -> str:
    """Why an event cannot be learnt, "" if it can."""
    seconds = store.segment_seconds
    if span.label not in store.classes:
        return "unknown"
    if not 0 <= span.start <= span.end < np.inf:
        return "impossible"
    if span.start == span.end:
        return "empty"
    if span.start >= clip.duration:
        return "outside"
    if span.end > max(clip.duration, clip.segments * seconds) + 1e-6:  # the last segment may end after the clip
        return "late"
    carried = segment_labels((span,), store.classes, clip.segments, seconds) < len(store.classes)
    return "" if carried.any() else "short"


def _times(span: Span) -> str:
    return f"{span.label} {span.start:g}-{span.end:g} s"


def _of_windows(store: Store, window: int) -> list[Finding]:
    """The windows that training would cut: those with several classes, and clips that are too short for one."""
    place = f"windows of {counted(window, 'segment')}"
    findings = []
    short = [clip for clip in store.clips if clip.segments < window]
    if short:
        text = f"shorter clips, the shortest of {counted(min(clip.segments for clip in short), 'segment')}"
        findings += listed("note", place, text, [clip.id for clip in short])
    mixed = []
    for clip in store.clips:
        labels = {span.label for span in clip.spans or ()}
        if len(labels) < 2 or not labels <= set(store.classes):
            continue
        classes = segment_labels(clip.spans or (), store.classes, clip.segments, store.segment_seconds)
        for first in consecutive_windows(clip.segments, window):
            held = [name for index, name in enumerate(store.classes) if index in classes[first : first + window]]
            if len(held) > 1:
                mixed.append(f"{clip.id} at {first * store.segment_seconds:g} s ({' and '.join(held)})")
    findings += listed("note", place, "with events of several classes", mixed)
    if not findings:
        findings.append(Finding("ok", place, "every clip is long enough, and no window has several classes"))
    return findings
