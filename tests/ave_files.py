"""A small folder of AVE's own files: every one that AVE has, with the same keys, types and kinds of row."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from avel.data.ave.files import CLASSES

BACKGROUND = len(CLASSES)


def write_h5(path: Path, array: np.ndarray, key: str = "avadataset") -> None:
    """One data set in a file of its own."""
    with h5py.File(path, "w") as file:
        file.create_dataset(key, data=array)


def write_ave(
    folder: Path,
    *,
    rows: int = 14,
    background_videos: int = 3,
    grid: tuple[int, int] = (2, 3),
    visual_dim: int = 5,
    audio_dim: int = 4,
    seed: int = 0,
) -> Path:
    """Write the folder: row 1 has no length, the last row repeats the video of row 0 under another class."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    labels = [row * len(CLASSES) // rows for row in range(rows)]
    starts = random.integers(0, 9, rows)
    ends = np.array([random.integers(start + 1, 11) for start in starts])
    starts[1] = ends[1] = 0
    videos = [f"video_{row:05d}" for row in range(rows - 1)] + ["video_00000"]
    lines = [f"{CLASSES[labels[row]]}&{videos[row]}&good&{starts[row]}&{ends[row]}" for row in range(rows)]
    (folder / "Annotations.txt").write_text("\n".join(lines) + "\n")
    mask = (np.arange(10) >= starts[:, None]) & (np.arange(10) < ends[:, None])
    one_hot = np.eye(BACKGROUND + 1)
    ids = np.where(mask, np.array(labels)[:, None], BACKGROUND)
    write_h5(folder / "labels.h5", one_hot[ids])
    write_h5(folder / "labels_closs.h5", mask.astype(np.float32))
    write_h5(folder / "mil_labels.h5", one_hot[labels].astype(np.float32))
    write_h5(folder / "prob_label.h5", one_hot[ids].mean(1))
    write_h5(folder / "labels_noisy.h5", np.tile(one_hot[-1], (background_videos, 1)).astype(np.float32))

    def features(*shape: int) -> np.ndarray:
        return np.maximum(random.normal(size=shape), 0).astype(np.float32).astype(np.float64)

    visual = features(rows, 10, *grid, visual_dim)
    write_h5(folder / "visual_feature.h5", visual)
    write_h5(folder / "visual_feature_vec.h5", visual.mean((2, 3)))
    write_h5(folder / "audio_feature.h5", features(rows, 10, audio_dim) + 0.125)
    write_h5(folder / "visual_feature_noisy.h5", features(background_videos, 10, *grid, visual_dim))
    write_h5(folder / "audio_feature_noisy.h5", features(background_videos, 10, audio_dim) + 0.125)
    for family in ("", "_match"):
        order = random.permutation(rows)
        order = np.concatenate([order[order != 0], [0]])  # row 0 is tested, its other row is not
        quarter = rows // 4
        parts = {"train": order[: -2 * quarter], "val": order[-2 * quarter : -quarter], "test": order[-quarter:]}
        for name, part in parts.items():
            write_h5(folder / f"{name}_order{family}.h5", part.astype(np.int64), "order")
    return folder
