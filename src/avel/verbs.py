"""Verbs of the command line: their options and help come from signatures and docstrings."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from inspect import Parameter, signature
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NewType, NoReturn, Union, get_args, get_origin

import docstring_parser
import yaml
from jsonargparse import (  # type: ignore[attr-defined]
    ActionConfigFile,
    ArgumentParser,
    DefaultHelpFormatter,
    get_loader,
    set_loader,
    set_parsing_settings,
)

import avel
from avel.console import print_lines
from avel.errors import AvelError
from avel.text import visible

OK, SOME_FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130  # exit codes
KEYWORD_ONLY, POSITIONAL_OR_KEYWORD = Parameter.KEYWORD_ONLY, Parameter.POSITIONAL_OR_KEYWORD
ConfigFile = NewType("ConfigFile", Path)  # a YAML file with options of the verb

#: What jsonargparse says about a value -> what a user reads.
_PLAIN = {
    r'Parser key "(.+?)":\s+Expected a typing.Literal\[(.+?)\]. Got value: (.*)': r"--\1 \3: expected one of \2",
    r"""Parser key "(.+?)":\s+Expected a <class '(.+?)'>. Got value: (.*)""": r"--\1 \3: expected a value of type \2",
    r'Parser key "(.+?)":\s+': r"--\1: ",
}

_read_yaml = get_loader("yaml")


class Parser(ArgumentParser):
    """A parser whose messages cannot change the terminal, and whose help does not get lost on a full disk."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(formatter_class=_HelpFormatter, **settings)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if message.startswith("the following arguments are required: "):
            message = re.sub(r"[\w-]+\.", "", message)  # the verbs, as in extract.out
        for found, plain in _PLAIN.items():
            message = re.sub(found, plain, message)
        message = _dashed(message)
        super().error(visible(message, keep_lines=True), ex)

    def _print_message(self, message: str, file: Any = None) -> None:  # argparse ignores what goes wrong here
        print_lines(message, stderr=file is not sys.stdout)


class _HelpFormatter(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of the example, spells options with dashes, and says only what a reader needs of a value."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text: str = super()._get_help_string(action)
        text = text.replace("type: %(type)s, ", "") if action.choices or _words_of(action) else text
        if action.default in (None, {}, []) or action.nargs == 0:  # the sentence says what happens without it
            text = re.sub(r"(, | \()default: %\(default\)s", lambda match: match[1].strip(", "), text)
        if isinstance(action.default, list | tuple):
            text = text.replace("%(default)s", " ".join(map(str, action.default)))
        return text.removesuffix("()").rstrip()

    def _expand_help(self, action: argparse.Action) -> str:
        text: str = super()._expand_help(action)
        return text.replace("<class 'Path'>", "path")

    def format_help(self) -> str:
        text: str = re.sub(r"\n *Available subcommands:\n *\(required\)", "", super().format_help())
        return _dashed(text)


def _dashed(text: str) -> str:
    """The text with ``--batch_size`` as a user types it: ``--batch-size``."""
    return re.sub(r"--[a-z_]+", lambda match: match[0].replace("_", "-"), text)


def _words_of(action: argparse.Action) -> bool:
    """Whether a value is one of a few words, or of yes and no, which the usage shows."""
    hint = getattr(action, "_typehint", None)
    return hint is bool or get_origin(hint) is Literal


def _value(text: str) -> Any:
    """What YAML makes of a text; a file name that is not UTF-8 stays a text."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text
    return _read_yaml(text)


@dataclass(frozen=True)
class Verb:
    """A verb of the command line.

    Attributes:
        run: does it, and gives the exit code. Its docstring is the help, with an example.
        calls: what ``run`` passes its ``**settings`` on to, as ``module:name``, imported when its options are wanted.
        skip: parameters of those that are not options.
    """

    run: Callable[..., int]
    calls: tuple[str, ...]
    skip: tuple[str, ...]


Verbs = Mapping[str, Verb | Mapping[str, Verb]]


def verb(*calls: str, skip: tuple[str, ...] = ()) -> Callable[[Callable[..., int]], Verb]:
    """Make a function a `Verb`."""
    return lambda run: Verb(run, calls, skip)


def parse(words: Sequence[str], verbs: Verbs) -> tuple[Callable[..., int], dict[str, Any]]:
    """The function of the verb that is asked for, and its parameters.

    Raises:
        AvelError: a word begins with a dash and is not an option.
        SystemExit: the words cannot be understood, which the user is told; or they ask for help, which is given.
    """
    options = words[: words.index("--")] if "--" in words else words
    _refuse_dashed_names(options)
    words = [*map(_underscored, options), *words[len(options) :]]
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    set_loader("yaml", _value, exceptions=(yaml.YAMLError,))
    parser = Parser(prog="avel", description="Find, second by second, the events in a video that are seen and heard.")
    parser.add_argument("--version", action="version", version=f"avel {avel.__version__}")
    _add_verbs(parser, verbs, words)
    if not words or (
        len(words) == 1 and isinstance(verbs.get(words[0]), Mapping)
    ):  # `avel`, `avel data`: what there is
        words = [*words, "--help"]
    try:
        arguments = parser.parse_args(words)
    except UnicodeDecodeError as error:  # of a --config
        parser.error(f"the file given by --config is not in UTF-8: {error}")
    chosen = arguments[arguments.verb]
    verb = verbs[arguments.verb]
    if isinstance(verb, Mapping):
        verb, chosen = verb[chosen.verb], chosen[chosen.verb]
    return verb.run, dict(chosen.items())


def _add_verbs(parser: Parser, verbs: Verbs, words: Sequence[str]) -> None:
    """Add the verbs, but build the options of the one that was asked for only: building all takes too long."""
    told = f"`{parser.prog.replace(' [options]', '')} VERB --help` explains a verb."
    subcommands = parser.add_subcommands(dest="verb", metavar="VERB", title="verbs", description=told)
    for name, verb in verbs.items():
        if isinstance(verb, Mapping):
            told = f"Make and inspect data sets: {', '.join(verb)}."
            child = Parser(description=told)
            subcommands.add_subcommand(name, child, help=told)
            if name in words:
                _add_verbs(child, verb, words)
            continue
        told, shown = _help(verb.run)
        child = Parser(description=told, epilog=shown)
        subcommands.add_subcommand(name, child, help=told)
        if name in words:
            calls = [getattr(import_module(module), each) for module, each in (at.split(":") for at in verb.calls)]
            _add_options(child, verb.run, calls, verb.skip)


def _add_options(
    parser: ArgumentParser, verb: Callable[..., Any], sources: Sequence[Callable[..., Any]], skip: Collection[str] = ()
) -> None:
    """Add the parameters of a verb to its parser, then those of what it passes its ``**settings`` on to.

    A parameter before the ``*`` is a word, any other an option. A list is several words, and a bool a flag.

    Args:
        parser: of the verb.
        verb: the function of the verb.
        sources: dataclasses, whose fields are options, and functions, whose keyword-only parameters are. Their
            docstrings also have the sentences that the verb's own docstring leaves out.
        skip: names of parameters and fields that are not options.
    """
    functions = [each for each in (*sources, verb) if not isinstance(each, type)]
    told = {name: text for each in functions for name, text in _sentences(each).items()}
    known = {"progress", *skip}
    for each in (verb, *sources):
        if isinstance(each, type):
            parser.add_class_arguments(each, skip=known)
            continue
        kinds = (KEYWORD_ONLY, POSITIONAL_OR_KEYWORD) if each is verb else (KEYWORD_ONLY,)
        for parameter in signature(each).parameters.values():
            if parameter.kind in kinds and parameter.name not in known:
                # Not `get_type_hints`: types of other parameters may be known to type checkers alone.
                hint = parameter.annotation
                hint = eval(hint, each.__globals__) if isinstance(hint, str) else hint
                _add_option(parser, parameter, hint, told[parameter.name])
                known.add(parameter.name)


def _help(verb: Callable[..., Any]) -> tuple[str, str]:
    """The first sentence of a verb's docstring, and its example, indented as a shell shows it."""
    parsed = docstring_parser.parse(verb.__doc__ or "")
    shown = "\n".join(each.description or "" for each in parsed.examples)
    return parsed.short_description or "", "example:\n" + re.sub(r"(?m)^(?=avel |h5py)", "  ", shown)


def _sentences(function: Callable[..., Any]) -> dict[str, str]:
    """What the docstring of a function says about each parameter."""
    params = docstring_parser.parse(function.__doc__ or "").params
    told = {each.arg_name: " ".join((each.description or "").replace("``", "").split()) for each in params}
    return {name: text[:1].upper() + text[1:] for name, text in told.items()}


def _add_option(parser: ArgumentParser, parameter: Parameter, hint: Any, sentence: str) -> None:
    settings = {"help": sentence, **_values(hint)}
    if "choices" in settings and "nargs" in settings:  # whose usage would name all choices twice
        settings["metavar"] = parameter.name.upper()
    if parameter.kind is POSITIONAL_OR_KEYWORD:
        parser.add_argument(parameter.name, **settings)
    elif parameter.default is parameter.empty:
        parser.add_argument(f"--{parameter.name}", required=True, **settings)
    elif hint == ConfigFile | None:
        parser.add_argument(f"--{parameter.name}", help=sentence, action=ActionConfigFile)
    else:
        default = [*parameter.default] if isinstance(parameter.default, tuple) else parameter.default
        parser.add_argument(f"--{parameter.name}", default=default, **settings)


def _values(hint: Any) -> dict[str, Any]:
    """What argparse has to know about the values of a type."""
    if hint is bool:
        return {"action": "store_true"}
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    kind = Path if Path in kinds else kinds[0]
    if get_origin(kind) in (list, Sequence, Collection):
        return {**_values(get_args(kind)[0]), "nargs": "+"}
    if get_origin(kind) is tuple:
        return {**_values(get_args(kind)[0]), "nargs": len(get_args(kind))}
    return {"choices": get_args(kind)} if get_origin(kind) is Literal else {"type": kind}


def _refuse_dashed_names(words: Sequence[str]) -> None:
    """Raise AvelError if a file's name would be taken for an option, as with ``*.mp4`` in a shell."""
    for word in words:
        with suppress(ValueError):
            float(word)  # such as -1
            continue
        long = word.startswith("--")
        name = os.path.lexists(word) and not re.fullmatch(r"--[a-z][a-z_-]*", word) if long else word[:1] == "-"
        if name and word not in ("-", "-h"):
            raise AvelError(
                f"{word} begins with a dash, as an option does, but is not an option",
                "`--` before names that begin with a dash, or a path such as ./*.mp4",
                f"put the options first, then `--`, then the names; or write ./{word}",
            )


def _underscored(word: str) -> str:
    """``--batch-size=3`` as jsonargparse knows it: ``--batch_size=3``."""
    match = re.match(r"--[a-z][a-z.-]*", word)
    return match[0][:2] + match[0][2:].replace("-", "_") + word[match.end() :] if match else word
