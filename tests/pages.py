"""What stands in the fenced blocks of a page."""

import re
from pathlib import Path


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, text) of every fenced block that names a language, in the order of the page."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


def commands(block: str) -> list[str]:
    """The lines of a shell block without their comments."""
    lines = [line.split("  #")[0].strip() for line in block.splitlines()]
    return [line for line in lines if line]
