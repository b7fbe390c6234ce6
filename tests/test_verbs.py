"""Verbs of the command line: their options come from signatures and docstrings, and stay what they were."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import pytest

from avel import cli
from avel.verbs import ConfigFile, Parser, Verb, Verbs, _add_verbs, parse, verb

OPTIONS = json.loads((Path(__file__).parent / "options.json").read_text())


def options_of(words: list[str]) -> dict[str, dict[str, Any]]:
    """What a verb takes: each word and option with its default, and how many of which values it has."""
    parser = Parser(prog="avel")
    _add_verbs(parser, cli.VERBS, words)
    for word in words:
        parser = parser._subcommands_action._name_parser_map[word]
    return {
        name.replace("_", "-"): {
            "default": json.loads(json.dumps(action.default, default=str)),
            "required": action.required,
            "nargs": action.nargs or None,
            "choices": [*(action.choices or get_args(getattr(action, "_typehint", None)))],
        }
        for action in parser._actions
        for name in [*action.option_strings[:1], action.dest][:1]
    }


@pytest.mark.parametrize("name", OPTIONS)
def test_the_options_of_earlier_versions_are_there_with_their_defaults(name: str) -> None:
    found = options_of(name.split())
    for option, settings in OPTIONS[name].items():
        expected = {"default": None, "required": False, "nargs": None, "choices": []} | settings
        choices = expected.pop("choices"), found[option].pop("choices")
        assert found[option] == expected and set(choices[0]) <= set(choices[1]), option


def names(verbs: Verbs) -> set[str]:
    inner = {f"{group} {name}" for group, each in verbs.items() if isinstance(each, Mapping) for name in each}
    return inner | {name for name, each in verbs.items() if isinstance(each, Verb)}


def test_every_verb_is_in_the_list_of_options() -> None:
    assert names(cli.VERBS) == set(OPTIONS)


@dataclass(frozen=True)
class Settings:
    """Settings."""

    width: int = 8
    """Width of the thing."""
    hidden: int = 0
    """No option."""


def work(
    source: "Unknown",  # type: ignore[name-defined] # noqa: F821 - as where a type is imported for type checkers alone
    *,
    depth: int | None = None,
    kinds: Sequence[str] = (),
    hidden: int = 0,
    progress: Any = None,
) -> None:
    """Work.

    Args:
        source: what to work on.
        depth: how ``deep``
            it is.
        kinds: some kinds.
        hidden: no option.
        progress: called now and then.
    """


@verb(f"{__name__}:work", f"{__name__}:Settings", skip=("hidden",))
def sample(
    source: list[Path],
    *,
    out: str | Path,
    config: ConfigFile | None = None,
    pair: tuple[int, int] = (1, 2),
    word: Literal["one", "two"] = "one",
    yes: bool = False,
    **settings: Any,
) -> int:
    """Do it. All of it.

    Args:
        out: Where to.
        config: A file.
        pair: Two numbers.
        word: One or two.
        yes: Say yes.

    Example:
        avel sample file

        prints: done
    """
    return 0


def test_the_parameters_of_a_verb_are_its_words_and_options(tmp_path: Path) -> None:
    run, chosen = parse(["sample", "a", "b", "--out", "3"], {"sample": sample})
    assert run is sample.run
    assert chosen == {
        "source": [Path("a"), Path("b")],
        "out": Path("3"),
        "config": None,
        "pair": [1, 2],
        "word": "one",
        "yes": False,
        "depth": None,
        "kinds": [],
        "width": 8,
    }
    given = ["sample", "a", "--out", "o", "--pair", "3", "4", "--word", "two", "--yes", "--kinds", "x", "y"]
    _, chosen = parse([*given, "--depth=5", "--width", "9"], {"sample": sample})
    assert chosen["pair"] == [3, 4] and chosen["word"] == "two" and chosen["yes"] and chosen["kinds"] == ["x", "y"]
    assert chosen["depth"] == 5 and chosen["width"] == 9
    (tmp_path / "some.yaml").write_text("out: there\nwidth: 3\n")
    _, chosen = parse(["sample", "a", "--config", str(tmp_path / "some.yaml")], {"sample": sample})
    assert chosen["out"] == Path("there") and chosen["width"] == 3


def test_the_docstrings_are_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["sample", "--help"], {"sample": sample})
    told = capsys.readouterr().out
    assert told.startswith("usage: avel [options] sample") and "\nDo it. All of it.\n" in told
    assert "What to work on. (required, type: path)" in told  # of the function that the verb calls
    assert "How deep it is. (type: int)" in told and "Width of the thing. (type: int, default: 8)" in told
    assert "Two numbers. (type: int, default: 1 2)" in told
    assert "One or two. (default: one)" in told and "Say yes.\n" in told
    assert "hidden" not in told and "progress" not in told
    assert told.endswith("example:\n  avel sample file\n\nprints: done\n")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
@pytest.mark.parametrize("words", [["--help"], ["--version"], ["evaluate", "--help"], ["data"]], ids=" ".join)
@pytest.mark.parametrize("buffered", [True, False])
def test_help_that_nobody_gets_is_an_error(words: list[str], buffered: bool) -> None:
    command = [sys.executable, *([] if buffered else ["-u"]), "-m", "avel", *words]
    usual = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=usual)
    assert result.returncode == 2 and "cannot write to standard output" in result.stderr, result.stderr
    assert "Exception ignored" not in result.stderr
    assert "Traceback" not in result.stderr


def test_a_closed_output_is_no_reason_for_a_traceback() -> None:
    command = [sys.executable, "-m", "avel", "data", "check", "missing"]
    result = subprocess.run(["sh", "-c", 'exec "$@" >&-', "sh", *command], stderr=subprocess.PIPE, text=True)
    assert result.returncode == 2 and "Traceback" not in result.stderr and "missing" in result.stderr


def test_help_whose_reader_is_gone_ends_quietly() -> None:
    command = [sys.executable, "-m", "avel", "extract", "--help"]
    reading, writing = os.pipe()
    os.close(reading)  # before the command starts, however busy the machine is
    try:
        result = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, timeout=60)
    finally:
        os.close(writing)
    assert (result.returncode, result.stderr) == (141, b"")
