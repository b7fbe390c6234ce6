"""Checks of a folder of AVE's files: the survey of the small ones, every feature of the large ones."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from avel.data.ave.files import FEATURES, NAMES, SEGMENTS, damaged, open_dataset, read_rows
from avel.data.ave.survey import FEATURE_FILES, survey
from avel.data.measure import Kind, Measured, Places, in_threads, measure, of_values, of_zeros, refused
from avel.errors import AvelError
from avel.types import Finding, Progress

CHUNK_BYTES = 32 * 2**20  # of an h5 file, read at once by a thread
POOLED_DIFFERENCE = 1e-3  # between the pooled file and the mean over the cells, relative


def check_ave(folder: Path, progress: Progress | None = None) -> list[Finding]:
    """Findings about a folder that holds some of AVE's files; damage is a finding too."""
    files = {}
    for key in sorted(
        FEATURE_FILES, key=lambda key: key != "pooled visual"
    ):  # checked before the other is compared with it
        there = [folder / name for name in NAMES[key] if (folder / name).is_file()]
        if there:
            files[key] = there[0]
    complaint = ""
    try:
        found = survey(folder)
    except AvelError as error:
        complaint = error.found
        findings = [refused(str(folder), error)]
    else:
        findings = [
            Finding("note" if "simulated" in found.origin else "ok", str(folder), f"the data are {found.origin}")
        ]
        findings += found.findings
        for task, lacking in found.lacking().items():
            text = f"not possible without {', '.join(lacking)}" if lacking else "every file is there"
            findings.append(Finding("note" if lacking else "ok", f"task {task}", text))
    pooled = None
    for key, path in files.items():
        if str(path) in complaint:
            continue  # the error above says what is wrong with it
        try:
            of_file = _of_file(
                path, "audio" if "audio" in key else "visual", pooled if key == "visual" else None, progress
            )
        except AvelError as error:
            findings.append(refused(path.name, error))
        else:
            findings += of_file
            if key == "pooled visual" and not complaint:  # then the shapes fit one another
                pooled = path
    return findings


def _of_file(path: Path, kind: Kind, pooled: Path | None, progress: Progress | None) -> list[Finding]:
    """Every feature of an h5 file, and whether ``pooled`` holds their means over the cells.

    Raises:
        AvelError: the file cannot be read, or holds no floats of shape (rows, T, ..., width).
    """
    seen, worst = Measured(), 0.0
    with open_dataset(path, FEATURES) as dataset, open_dataset(pooled or path, FEATURES) as means:
        shape, dtype = dataset.shape, dataset.dtype
        if not shape or len(shape) < 3 or 0 in shape or dtype.kind != "f":
            form = f"floats of shape (rows, {SEGMENTS}, ..., width)"
            raise damaged(path, FEATURES, f"{dtype} of shape {shape}", form)
        step = max(1, CHUNK_BYTES // (int(np.prod(shape[1:])) * dtype.itemsize))
        chunks = [slice(first, min(first + step, shape[0])) for first in range(0, shape[0], step)]
        tasks = ((path, dataset, pooled, means, chunk, kind) for chunk in chunks)
        with closing(in_threads(_read_chunk, tasks)) as results:
            for chunk, (measured, difference) in zip(chunks, results, strict=True):
                seen.add(measured)
                worst = max(worst, difference)
                if progress:
                    progress(path.name, chunk.stop, shape[0])
    place = f"{path.name}, key {FEATURES}"
    names = [f"row {row}" for row in range(shape[0])]
    places = Places("row", names, np.arange(shape[0] + 1) * shape[1])
    findings = [Finding("ok", place, f"{dtype} of shape {shape}")]
    findings += of_values(place, kind, seen, places) + of_zeros(place, kind, seen, places, None)
    if pooled:
        same = worst <= POOLED_DIFFERENCE
        text = f"{'is' if same else 'is not'} the mean over the cells of {path.name}: largest relative difference"
        findings.append(Finding("ok" if same else "error", pooled.name, f"{text} {worst:.1e}"))
    return findings


def _read_chunk(
    path: Path, dataset: Any, pooled: Path | None, means: Any, rows: slice, kind: Kind
) -> tuple[Measured, float]:
    """What is in some rows of a file, and the largest difference of a segment's means from ``means``, relative."""
    shape = (rows.stop - rows.start, *dataset.shape[1:])
    values = read_rows(dataset, path, rows, np.empty(shape, dataset.dtype.newbyteorder("=")))
    measured = measure(values.reshape(shape[0] * shape[1], -1), rows.start * shape[1], kind)
    if pooled is None:
        return measured, 0.0
    given = read_rows(means, pooled, rows).astype(np.float64)
    mean = values.mean((2, 3), dtype=np.float64)
    largest = np.maximum(np.abs(mean), np.abs(given)).max(-1)
    apart = np.abs(mean - given).max(-1)
    known = np.isfinite(apart) & (largest > 0)  # NaN is reported by its own finding
    return measured, float((apart[known] / largest[known]).max(initial=0.0))
