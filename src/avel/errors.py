"""The one error a user meets: what was found, what was expected, what to do. And the one kind of notice."""

import os
import warnings
from pathlib import Path

from avel.text import visible


class AvelError(Exception):
    """A mistake in the input, explained so that the reader can correct it.

    Args:
        found: what is wrong, naming the file, row or value as it was found.
        expected: what would have been right.
        do: the next step, as a sentence or a command.
    """

    def __init__(self, found: str, expected: str, do: str) -> None:
        self.found = found
        self.expected = expected
        self.do = do
        super().__init__(found, expected, do)  # positional, so that the error survives a process boundary

    def __str__(self) -> str:
        expected, do = visible(self.expected, keep_lines=True), visible(self.do, keep_lines=True)
        return f"{visible(self.found)}\n  expected: {expected}\n  do this:  {do}"


class UnreadableError(AvelError):
    """A file that exists but cannot be read; it need not be damaged."""


class AvelNotice(UserWarning):
    """Avel goes on in a slower or less safe way; the text says what that costs."""


_NOTICED: set[tuple[str, int]] = set()


def notice_of_disk(lacking: str, folder: str | Path, message: str) -> None:
    """Warn of what the disk of a folder lacks, once per process and disk."""
    disk = (lacking, os.stat(folder).st_dev)
    if disk not in _NOTICED:
        _NOTICED.add(disk)
        warnings.warn(visible(message), AvelNotice, stacklevel=3)


def error_of_disk(error: OSError) -> AvelError:
    """An error of the operating system about a file or a disk, for the user."""
    places = " and ".join(os.fsdecode(name) for name in (error.filename, error.filename2) if name is not None)
    return AvelError(
        f"{error.strerror}: {places}" if places else f"{error.strerror}",
        "files and folders that can be read and written",
        "check their permissions and the disk",
    )
