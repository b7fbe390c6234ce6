"""The one error a user meets: what was found, what was expected, what to do."""


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
        return f"{self.found}\n  expected: {self.expected}\n  do this:  {self.do}"
