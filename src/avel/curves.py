"""The curves of a run for TensorBoard: what ``metrics.jsonl`` holds, as event files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from avel.errors import AvelError


def check_tensorboard() -> None:
    """Refuse where TensorBoard is not installed.

    Raises:
        AvelError: it is not.
    """
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise AvelError(
            f"no TensorBoard on this machine ({error})",
            "the package tensorboard, which writes its event files",
            'pip install "avel[tensorboard]", or leave out --tensorboard: metrics.jsonl holds the same numbers',
        ) from error


class Curves:
    """Event files under ``RUN/tensorboard``: a point an epoch of every number of a metric line."""

    def __init__(self, run: Path, metrics: Sequence[dict[str, Any]]) -> None:
        """Go on after the epochs of ``metrics``; what event files hold of later ones no longer counts.

        Raises:
            AvelError: the folder is a link to another place, or it cannot be written.
        """
        from torch.utils.tensorboard import SummaryWriter

        folder = run / "tensorboard"
        if folder.is_symlink():
            raise AvelError(f"{folder} is a link", "a folder inside the run", "remove the link")
        begun = folder.is_dir() and any(folder.iterdir())
        done = metrics[-1]["epoch"] if metrics else 0
        try:
            self._writer = SummaryWriter(str(folder), purge_step=done + 1 if begun else None)
            for line in () if begun else metrics:
                self.add(line)
        except OSError as error:
            raise AvelError(
                f"cannot write {folder}: {error.strerror}", "a folder that can be written", "leave out --tensorboard"
            ) from error

    def add(self, line: dict[str, Any]) -> None:
        """Add a metric line's numbers, by names such as ``train/total`` and ``val/accuracy``, at its epoch."""
        points = {"learning_rate": line["learning_rate"]}
        for name, value in line.items():
            if isinstance(value, dict):
                points |= {f"{name}/{part}": number for part, number in value.items()}
        for name, number in points.items():
            self._writer.add_scalar(name, number, line["epoch"])
        self._writer.flush()

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()
