"""The one error a user meets: what was found, what was expected, what to do."""

from avel.text import visible


class AvelError(Exception):
    """A mistake in the input, told so that the reader can mend it.

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
