"""The names of splits: AVE's, and what others call them."""

from __future__ import annotations

import difflib
import shlex
import unicodedata
from collections.abc import Collection

from avel.errors import AvelError

#: AVE's two partitions: the usual one, and the one of cross-modality localization.
FAMILIES = {"standard": ("train", "val", "test"), "match": ("train_match", "val_match", "test_match")}
#: The clips without any event that join the weak task's training.
BACKGROUND_SPLIT = "background"
#: Every split that training or evaluation uses by itself.
KNOWN = (*FAMILIES["standard"], *FAMILIES["match"], BACKGROUND_SPLIT)

_TEST_OR_VAL = "'val' (chooses the epoch) or 'test' (is scored once)"
_MEANT = {
    **dict.fromkeys(("training", "learn", "trn"), "'train'"),
    **dict.fromkeys(("valid", "validate", "validation", "dev", "devel", "development"), "'val'"),
    **dict.fromkeys(("testing", "tst"), "'test'"),
    **dict.fromkeys(("eval", "evaluate", "evaluation", "holdout", "held-out"), _TEST_OR_VAL),
}


def known_split(written: str) -> str | None:
    """The split that a name means, whatever its case and the blanks around it; None for any other name."""
    name = written.strip().casefold()
    return name if name in KNOWN else None


def meant_split(written: str) -> str | None:
    """The right word, in quotes, for what others call a split (``valid``, ``dev``, ...); None for any other name."""
    return _MEANT.get(written.strip().casefold())


def read_split(written: str, place: str, extra: Collection[str] = ()) -> str:
    """The name of the split that a table gives a clip.

    Args:
        written: what the table says, not empty.
        place: file, line and column, for the message.
        extra: names of your own splits; nothing trains on them or tests on them by itself.

    Raises:
        AvelError: another word for one of avel's splits, or an unknown name that is not in ``extra``.
    """
    known = known_split(written)
    if known:
        return known
    meant = meant_split(written)
    if meant:
        raise AvelError(f"{place}: {written!r}", f"the name used here: {meant}", f"write {meant} instead")
    name = unicodedata.normalize("NFC", written.strip())
    own = next((each for each in extra if unicodedata.normalize("NFC", each.strip()) == name), None)
    if own is not None:
        return own.strip()
    near = difflib.get_close_matches(written.strip().casefold(), KNOWN, 1)
    raise AvelError(
        f"{place}: {written!r} is not a split that training or evaluation uses",
        f"train, val or test{f'; the nearest is {near[0]!r}' if near else ''}",
        f"correct it, or, if the split is your own, add --extra-splits {shlex.quote(written.strip())}",
    )
