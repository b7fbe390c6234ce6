"""The curves of a run for TensorBoard: the content of ``metrics.jsonl`` as event files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from avel.errors import AvelError


def check_tensorboard() -> None:
    """Check that TensorBoard is installed.

    Raises:
        AvelError: it is not.
    """
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise AvelError(
            f"TensorBoard is not installed ({error})",
            "the package tensorboard, which writes its event files",
            'pip install "avel[tensorboard]", or leave out --tensorboard: metrics.jsonl holds the same numbers',
        ) from error


class Curves:
    """Event files under ``RUN/tensorboard``: one point per epoch for every number in a metric line."""

    def __init__(self, run: Path, metrics: Sequence[dict[str, Any]]) -> None:
        """Continue after the epochs of ``metrics``; TensorBoard drops what the event files hold of later ones.

        Raises:
            AvelError: the folder is a link, or it cannot be written.
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
        """Add a metric line's numbers under names such as ``train/total`` and ``val/accuracy``, at its epoch."""
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
