"""The verbs of data sets: ``avel data ...`` and ``avel export-h5``. See `avel.cli`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from avel.console import bars, say
from avel.errors import AvelError
from avel.files import make_folder, write_file
from avel.text import counted
from avel.verbs import OK, SOME_FAILED, verb


@verb("avel.worlds.rendered.render:render", skip=("seconds",))
def render(*, out: Path, **settings: Any) -> int:
    """Render mp4 clips with audio-visual events, among them the hard cases of real videos.

    Args:
        out: Folder for the videos and their CSVs.

    Example:
        avel data render --out world --clips 40

        prints: 40 clips, labels in world/clips.csv
    """
    from avel.worlds.rendered.render import render

    with bars() as progress:
        table = render(out, **settings, progress=progress)
    say(f"{counted(settings['clips'], 'clip')}, labels in {table}")
    return OK


@verb("avel.data.ave.importing:import_ave")
def import_ave(folder: Path, *, out: Path | None = None, dry_run: bool = False, **settings: Any) -> int:
    """Make a feature store of AVE's h5 files, released or simulated.

    Args:
        folder: Folder with AVE's h5 files and Annotations.txt (see docs/ave.md).
        out: Feature store to write. After a stop, the same command resumes the work.
        dry_run: Write nothing: print which files are there, which are missing, and which tasks that rules out.

    Example:
        avel data import-ave data --out ave

        prints what is odd about the files, and: 4321 clips in ave; AVE; task full: ready; ...
    """
    from avel.data.ave.importing import import_ave
    from avel.data.ave.survey import survey
    from avel.summaries import print_files, print_findings, print_tasks

    if dry_run:
        found = survey(folder)
        print_files(found)
        print_findings(found.findings)
        print_tasks(found)
        return OK
    if out is None:
        raise AvelError("no --out", "a folder for the store", "add --out STORE, or --dry-run to see what is there")
    with bars() as progress:
        report = import_ave(folder, out, **settings, progress=progress)
    print_findings(report.findings)
    kept = f", {report.clips - report.done} of them from an earlier run" if report.done < report.clips else ""
    say(f"{counted(report.clips, 'clip')} in {report.store}{kept}; {report.survey.origin}")
    print_tasks(report.survey)
    return OK


@verb("avel.worlds.simulated.simulate:simulate", skip=("version",))
def simulate(*, out: Path, set_version: int | None = None, **settings: Any) -> int:
    """Make features with planted structure in AVE's own files, shapes and numbers. They are simulated, not AVE.

    Args:
        out: Folder for the files. After a stop, the same command resumes the work.
        set_version: Version of the set (see docs/simulated.md); by default the newest. 1 makes earlier files.

    Example:
        avel data simulate --out simulated --videos 400 --grid 4 4 --visual-dim 64

        prints rows, splits and size, and the import that comes next
    """
    from avel.summaries import print_simulated
    from avel.worlds.simulated.plan import VERSION
    from avel.worlds.simulated.simulate import simulate

    version = VERSION if set_version is None else set_version
    with bars() as progress:
        report = simulate(out, version=version, **settings | {"grid": tuple(settings["grid"])}, progress=progress)
    print_simulated(report)
    say(f"Next: avel data import-ave {report.folder} --out STORE")
    return OK


@verb("avel.data.check:check")
def check(path: Path, **settings: Any) -> int:
    """Read a feature store or AVE's files once and print what is odd. The exit code is 1 if something is wrong.

    Args:
        path: A feature store, or a folder with AVE's files.

    Example:
        avel data check store

        prints a line per finding: ok, note or error, where, what
    """
    from avel.data.check import check, exit_code
    from avel.summaries import print_findings

    with bars() as progress:
        findings = check(path, **settings, progress=progress)
    print_findings(findings)
    errors = sum(finding.level == "error" for finding in findings)
    say(f"{counted(errors, 'error') if errors else 'no errors'} in {path}")
    return SOME_FAILED if exit_code(findings) else OK


@verb("avel.data.compare:compare")
def compare(one: Path, other: Path, *, out: Path | None = None, overwrite: bool = False, **settings: Any) -> int:
    """Compare the features of two stores of the same clips.

    Args:
        one: A feature store.
        other: A store of the same clips; differences are relative to its features.
        out: Folder for comparison.json and comparison.png; by default neither is written.
        overwrite: Replace these files if they exist.

    Example:
        avel data compare own released --out comparison

        prints relative difference and correlation of audio and visual features, and the clips that differ most
    """
    from avel.data.compare import compare
    from avel.plots import comparison_picture

    written = [out / name for name in ("comparison.json", "comparison.png")] if out else []
    there = [str(file) for file in written if os.path.lexists(file)]
    if there and not overwrite:
        raise AvelError(
            f"{' and '.join(there)} already {'exist' if there[1:] else 'exists'}",
            "new files",
            "choose another --out, or add --overwrite",
        )
    with bars() as progress:
        found = compare(one, other, **settings, progress=progress)
    for line in found.lines():
        say(line)
    if out:
        make_folder(out)
        write_file(written[0], json.dumps(found.to_json(), indent=1))
        relative = {"visual": found.visual, "audio": found.audio}
        comparison_picture(
            {kind: [clip.relative for clip in each.clips] for kind, each in relative.items()},
            written[1],
            title=f"{found.a} against {found.b}",
        )
        say(f"Written: {out}/comparison.json, comparison.png")
    return OK


@verb("avel.data.ave.export:export_h5")
def export_h5(store: Path, out: Path, **settings: Any) -> int:
    """Write a feature store as h5 files in AVE's layout, which other people's code reads.

    Args:
        store: A feature store.
        out: Folder to write: new or empty, or an earlier export with --overwrite.

    Example:
        avel export-h5 store h5

        prints: 4143 rows and 178 of background alone, 28 classes, 8.9 GB in h5, and the files' names

        h5py.File('h5/visual_feature.h5')['avadataset'][:]

        is then (N, 10, 7, 7, 512) in the order of Annotations.txt
    """
    from avel.data.ave.export import export_h5
    from avel.summaries import print_exported

    with bars() as progress:
        report = export_h5(store, out, **settings, progress=progress)
    print_exported(report)
    return OK
