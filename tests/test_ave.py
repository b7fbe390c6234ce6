"""AVE's annotations, splits and labels: against the real files, and every way a small copy can be wrong."""

from __future__ import annotations

import json
import re
from pathlib import Path

import h5py
import numpy as np
import pytest
from ave_files import write_ave, write_h5

from avel.data.ave.files import (
    CLASSES,
    OFFICIAL,
    event_mask,
    full_labels,
    read_annotations,
    read_order,
    weak_labels,
)
from avel.data.ave.survey import read_splits, repeated_videos, shared_videos, survey
from avel.errors import AvelError
from avel.types import Span

LEAKED = [
    "-9_5_2i4igQ",
    "-PljzzluWNw",
    "-WOcO4B-Jis",
    "0NmA9tKpBdw",
    "0f_iTO5t3hU",
    "0qvQIuQoODo",
    "1cmo1SGxJnc",
    "7iIBkME4bSM",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ave(tmp_path_factory.mktemp("ave"))


@pytest.fixture
def real(real_data: Path) -> Path:
    if not (real_data / "ave" / "Annotations.txt").is_file():
        pytest.skip(f"no AVE files in {real_data}")
    return real_data / "ave"


def array(path: Path, key: str = "avadataset") -> np.ndarray:
    with h5py.File(path) as file:
        return file[key][:]


# The real files


def test_the_classes_are_those_of_the_real_file_in_its_order(real: Path) -> None:
    labels = [line.split("&")[0] for line in (real / "Annotations.txt").read_text().splitlines()]
    assert tuple(dict.fromkeys(labels)) == CLASSES


def test_labels_from_the_real_annotations_equal_the_label_files(real: Path) -> None:
    annotations = read_annotations(real / "Annotations.txt")
    assert len(annotations) == 4143 and len({each.video for each in annotations}) == 4097
    assert np.array_equal(event_mask(annotations), array(real / "labels_closs.h5") == 1)
    assert np.array_equal(weak_labels(annotations), array(real / "mil_labels.h5"))
    both = weak_labels(annotations, background_videos=178)
    assert np.array_equal(both[4143:], array(real / "labels_noisy.h5"))
    full = full_labels(annotations)
    assert (full == 28).mean() == pytest.approx(0.171, abs=5e-4)
    assert np.array_equal(weak_labels(annotations, "proportion"), np.eye(29, dtype=np.float32)[full].mean(1))


def test_the_survey_of_the_real_files(real: Path) -> None:
    found = survey(real)
    assert found.origin == "AVE" and found.simulated is None
    said = [str(finding) for finding in found.findings]
    assert not [finding for finding in found.findings if finding.level == "error"]
    assert sum("disjoint and complete: 3339 + 402 + 402 = 4143 rows" in line for line in said) == 2
    (repeated,) = (line for line in said if "videos with two rows or more" in line)
    assert "(45)" in repeated and len(repeated_videos(found.annotations)) == 45
    assert sorted(map(len, repeated_videos(found.annotations).values())) == [2] * 44 + [3]
    (leaked,) = (line for line in said if "train and test: " in line)
    assert "videos in both (8)" in leaked and all(video in leaked for video in LEAKED)
    assert shared_videos(found.annotations, found.splits["train"], found.splits["test"]) == LEAKED
    assert "videos in both (10)" in next(line for line in said if "train and val: " in line)
    assert any("row 26" in line and "without length" in line for line in said)
    for cells in ("120147", "41430", "5162"):
        assert any(f"equals Annotations.txt on all {cells} cells" in line for line in said)
    assert len(set(found.splits["test_match"]) & set(found.splits["train"])) == 314  # docs/ave.md warns of them
    assert found.lacking()["cml"] == ["visual_feature.h5", "audio_feature.h5"]
    assert all(name in said[0] for name in OFFICIAL) and "same as published" in said[0]


# Reading annotations


def test_a_header_and_other_ends_of_lines_change_nothing(folder: Path, tmp_path: Path) -> None:
    plain = read_annotations(folder / "Annotations.txt")
    text = (folder / "Annotations.txt").read_text()
    for other in (
        "Category&VideoID&Quality&StartTime&EndTime\n" + text,
        text.replace("\n", "\r\n"),
        "\ufeff" + text,
        text.rstrip("\n"),
        "\n" + text + "\n\n",
    ):
        (tmp_path / "a.txt").write_bytes(other.encode())
        assert read_annotations(tmp_path / "a.txt") == plain
    assert plain[0].clip_id == "0000-video_00000" and isinstance(plain[0].span, Span)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("Bark&abc&good&1", "4 fields"),
        ("Bark&abc&good&1&2&3", "6 fields"),
        ("Barking&abc&good&1&2", "'Barking' is not a class of AVE"),
        ("Bark&&good&1&2", "no video id"),
        ("Bark&abc&good&3&2", "'3' to '2'"),
        ("Bark&abc&good&3&11", "'3' to '11'"),
        ("Bark&abc&good&-1&2", "'-1' to '2'"),
        ("Bark&abc&good&1.5&2", "'1.5' to '2'"),
        ("Bark&abc&good&&2", "'' to '2'"),
        ("Bark&abc&good&\u0661&2", "to '2'"),
        ("background&abc&good&0&10", "'background' is not a class"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str, said: str) -> None:
    (tmp_path / "a.txt").write_text(f"Category&VideoID&Quality&StartTime&EndTime\nCat&x&good&0&10\n{line}\n")
    with pytest.raises(AvelError) as error:
        read_annotations(tmp_path / "a.txt")
    assert said in error.value.found and "line 3 (row 1)" in error.value.found


def test_the_class_that_was_meant_is_guessed(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Cats&x&good&0&10\n")
    with pytest.raises(AvelError, match="such as 'Cat'"):
        read_annotations(tmp_path / "a.txt")


def test_files_that_are_no_annotations(tmp_path: Path) -> None:
    with pytest.raises(AvelError, match="no such file"):
        read_annotations(tmp_path / "none.txt")
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(AvelError, match="no rows"):
        read_annotations(tmp_path / "empty.txt")
    (tmp_path / "bytes.txt").write_bytes(b"Cat&x&good&0&10\n\xff\xfe\n")
    with pytest.raises(AvelError, match="line 2: not UTF-8"):
        read_annotations(tmp_path / "bytes.txt")


# Orders


@pytest.mark.parametrize(
    ("order", "said"),
    [
        (np.array([0, 1, 5]), "row 2 is 5"),
        (np.array([0, -1]), "row 1 is -1"),
        (np.array([3, 1, 3]), "rows 0 and 2 are both 3"),
        (np.array([[0, 1]]), r"shape \(1, 2\)"),
        (np.array([0.0, 1.0]), "float64"),
    ],
)
def test_a_wrong_order_is_named(tmp_path: Path, order: np.ndarray, said: str) -> None:
    write_h5(tmp_path / "train_order.h5", order, "order")
    with pytest.raises(AvelError, match=said) as error:
        read_order(tmp_path / "train_order.h5", 5)
    assert "train_order.h5, key order" in error.value.found


def test_another_key_says_what_is_there(tmp_path: Path) -> None:
    write_h5(tmp_path / "train_order.h5", np.arange(3), "oder")
    with pytest.raises(AvelError, match="the file holds 'oder'"):
        read_order(tmp_path / "train_order.h5", 3)


def test_splits_must_be_disjoint_and_complete(tmp_path: Path) -> None:
    for name, rows in {"train": [0, 1, 2], "val": [3], "test": [4]}.items():
        write_h5(tmp_path / f"{name}_order.h5", np.array(rows), "order")
    assert read_splits(tmp_path, 5) == {"train": {0, 1, 2}, "val": {3}, "test": {4}}
    with pytest.raises(AvelError, match=r"row 5 of Annotations.txt is in none of"):
        read_splits(tmp_path, 6)
    write_h5(tmp_path / "val_order.h5", np.array([2, 3]), "order")
    with pytest.raises(AvelError, match=r"row 2 of Annotations.txt is also in train_order.h5"):
        read_splits(tmp_path, 5)
    (tmp_path / "test_order.h5").unlink()
    (tmp_path / "train_order.h5").unlink()
    assert read_splits(tmp_path, 5) == {}


# Surveys


def levels(folder: Path) -> dict[str, list[str]]:
    said: dict[str, list[str]] = {"ok": [], "note": [], "error": []}
    for finding in survey(folder).findings:
        said[finding.level].append(f"{finding.place}: {finding.text}")
    return said


def test_what_is_missing_rules_out_tasks(tmp_path: Path) -> None:
    folder = write_ave(tmp_path / "ave")

    assert not any(survey(folder).lacking().values())
    (folder / "visual_feature_noisy.h5").unlink()
    (folder / "val_order_match.h5").unlink()
    lacking = survey(folder).lacking()
    assert lacking["weak, with background-only videos"] == ["visual_feature_noisy.h5"]
    assert lacking["full"] == lacking["weak"] == []
    assert lacking["cml"] == ["train_order_match.h5", "val_order_match.h5", "test_order_match.h5"]
    assert any("not used: val_order_match.h5 missing" in line for line in levels(folder)["note"])
    (folder / "visual_feature.h5").unlink()
    lacking = survey(folder).lacking()
    assert lacking["full"] == ["visual_feature.h5"] and "visual_feature.h5" not in lacking["cml"]
    (folder / "visual_feature_vec.h5").unlink()
    assert "visual_feature.h5" in survey(folder).lacking()["cml"]


def test_rows_of_label_files_that_differ_are_listed(tmp_path: Path) -> None:
    folder = write_ave(tmp_path / "ave")
    clean = levels(folder)
    assert sum("equals Annotations.txt on all" in line for line in clean["ok"]) == 5
    for name in ("labels.h5", "labels_closs.h5", "mil_labels.h5", "prob_label.h5", "labels_noisy.h5"):
        labels = array(folder / name)
        wrong = labels.copy()
        wrong[2, -1] = 0.5
        write_h5(folder / name, wrong)
        rows = len(labels)
        assert any(
            re.search(rf"{name}, key avadataset: 1 of {rows} rows differ .*: rows 2$", line)
            for line in levels(folder)["note"]
        ), name
        write_h5(folder / name, labels)
    wrong = array(folder / "labels.h5")
    wrong[5, 3] = np.nan
    write_h5(folder / "labels.h5", wrong)
    assert any("1 of 14 rows differ" in line for line in levels(folder)["note"])


def test_the_names_that_psp_and_vscg_use(tmp_path: Path) -> None:
    folder = write_ave(tmp_path / "ave")
    (folder / "labels.h5").rename(folder / "right_labels.h5")
    (folder / "audio_feature.h5").rename(folder / "audio_features.h5")
    found = survey(folder)
    assert found.files["labels"].name == "right_labels.h5" and found.files["audio"].name == "audio_features.h5"
    assert any(finding.place == "right_labels.h5" and finding.level == "ok" for finding in found.findings)
    (folder / "right_label.h5").write_bytes((folder / "right_labels.h5").read_bytes())
    assert any("right_label.h5: not read" in line for line in levels(folder)["note"])


def test_files_that_differ_from_the_public_ones_are_said_to(folder: Path) -> None:
    assert any("Annotations.txt: differs from the published file" in line for line in levels(folder)["note"])
    assert survey(folder).origin == "in AVE's layout, other annotations"


def test_simulated_data_says_so_and_a_damaged_mark_is_refused(tmp_path: Path) -> None:
    folder = write_ave(tmp_path / "ave")
    (folder / "simulated.json").write_text(json.dumps({"version": 3, "seed": 7}))
    found = survey(folder)
    assert found.origin == "simulated, not AVE (version 3, seed 7)"
    assert not any("public" in finding.text for finding in found.findings)
    (folder / "simulated.json").write_text("{}")
    with pytest.raises(AvelError, match=r"simulated.json is damaged"):
        survey(folder)


def test_classes_out_of_order_keep_their_ids(tmp_path: Path) -> None:
    folder = write_ave(tmp_path / "ave")
    lines = (folder / "Annotations.txt").read_text().splitlines()
    before = full_labels(read_annotations(folder / "Annotations.txt"))
    (folder / "Annotations.txt").write_text("\n".join(lines[::-1]))
    assert np.array_equal(full_labels(read_annotations(folder / "Annotations.txt")), before[::-1])


def test_no_folder_and_no_annotations(tmp_path: Path) -> None:
    with pytest.raises(AvelError, match="no such folder"):
        survey(tmp_path / "none")
    with pytest.raises(AvelError, match=r"no Annotations.txt"):
        survey(tmp_path)
