"""Text that others wrote, made safe for a terminal and a spreadsheet; numbers and short lists of names in words."""

from __future__ import annotations

import re
from collections.abc import Sequence

#: C0, DEL and C1, line and paragraph separators, overrides of the writing direction, bytes that are not text.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
_NAMED = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}
#: A spreadsheet takes a cell that starts so for a formula; the last four are full-width forms, which Excel takes too.
_FORMULA = "[=+\\-@\uff1d\uff0b\uff0d\uff20]"


def visible(text: str, *, keep_lines: bool = False) -> str:
    r"""The text with control characters written out, as ``\x1b``: it can neither hide nor move the text around it.

    Labels and file names come from others; a terminal obeys the control characters in them.

    Args:
        keep_lines: leave line feeds as they are, in a text of several lines.
    """

    return _CONTROLS.sub(lambda match: match[0] if keep_lines and match[0] == "\n" else written_out(match[0]), text)


def written_out(text: str) -> str:
    r"""Every character of the text as its code, ``\n`` or ``\x3a``: for what a format cannot hold."""
    codes = []
    for character in text:
        code = ord(character)
        code = code - 0xDC00 if 0xDC80 <= code <= 0xDCFF else code  # a byte of a file name that is not text
        width, letter = (2, "x") if code < 0x100 else (4, "u") if code < 0x10000 else (8, "U")
        codes.append(_NAMED.get(character) or f"\\{letter}{code:0{width}x}")
    return "".join(codes)


def has_controls(text: str) -> bool:
    """Whether `visible` would change the text."""
    return bool(_CONTROLS.search(text))


def first_names(names: Sequence[object], most: int = 3, *, total: int | None = None) -> str:
    """The first of many names: ``a, b, c and 4 more``.

    Args:
        names: all of them, or the first ones.
        most: how many to name.
        total: how many there are, if ``names`` are not all of them.
    """
    more = (len(names) if total is None else total) - most
    return ", ".join(map(str, names[:most])) + (f" and {more} more" if more > 0 else "")


def counted(number: int, noun: str) -> str:
    """``1 clip``, ``2 clips``, ``2 classes``."""
    return f"{number} {noun}{'' if number == 1 else 'es' if noun.endswith('s') else 's'}"


# In a CSV. A text reads back as it was. Only a text that a spreadsheet would run is changed.


def csv_cell(text: str) -> str:
    """A text as a CSV's cell, with an apostrophe before what a spreadsheet would run."""
    return f"'{text}" if re.match(f"'*{_FORMULA}", text) else text


def csv_text(cell: str) -> str:
    """The text that `csv_cell` wrote."""
    return cell[1:] if re.match(f"'+{_FORMULA}", cell) else cell


def csv_path(path: str) -> str:
    """A relative path as a CSV's cell: ``./-abc.mp4`` for ``-abc.mp4``, which any program finds all the same."""
    return f"./{path}" if re.match(f"(\\./)*[\t\r\n]*{_FORMULA}", path) else path


def csv_path_text(cell: str) -> str:
    """The path that `csv_path` wrote."""
    return cell[2:] if re.match(f"(\\./)+[\t\r\n]*{_FORMULA}", cell) else cell


def utf8_path(path: str) -> str:
    r"""A path in UTF-8 text without control characters: ``caf\xe9.mp4`` for bytes that are not UTF-8, ``\u001b``.

    Tabs and line ends stay: every CSV reader keeps them between quotes.
    """

    def code_of(match: re.Match[str]) -> str:
        code = ord(match[0])
        if match[0] in "\t\r\n":
            return match[0]
        return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"

    return _CONTROLS.sub(code_of, path)


def utf8_path_text(text: str) -> str:
    """The path that `utf8_path` wrote. A path that held such text before is not told apart: look for that first."""
    return re.sub(
        r"\\x([89a-f][0-9a-f])|\\u([0-9a-f]{4})",
        lambda match: chr(0xDC00 + int(match[1], 16) if match[1] else int(match[2], 16)),
        text,
    )
