"""The models by name. A new one needs one file, one line in ``MODELS``, one YAML file and one table row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from functools import cache
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from docstring_parser import parse_from_object
from torch import nn

from avel.errors import AvelError
from avel.models.agva import AGVA
from avel.models.ccln import CCLN
from avel.types import Model

MODELS: dict[str, type[Model]] = {"agva": AGVA, "ccln": CCLN}


def build_model(
    name: str,
    *,
    audio_dim: int,
    visual_dim: int,
    grid: tuple[int, int],
    num_classes: int,
    task: str,
    **options: Any,
) -> nn.Module:
    """Build a model by its name.

    Args:
        name: a key of ``MODELS``.
        audio_dim: Da.
        visual_dim: Dv.
        grid: (H, W); (1, 1) for pooled features.
        num_classes: C, background not counted.
        task: ``full``, ``weak`` or ``cml``.
        options: the model's own options, as ``describe_options`` lists them.

    Raises:
        AvelError: there is no such model or option, the model does not support the task, or an option has a value of
            the wrong type or has no effect in this task.
    """
    if name not in MODELS:
        raise AvelError(f"no model is called {name!r}", f"one of {', '.join(sorted(MODELS))}", "choose one of these")
    model = MODELS[name]
    if task not in model.tasks:
        raise AvelError(f"task {task!r} for {name}", " or ".join(model.tasks), "choose one of these, or another model")
    options_type = _options_type(model)
    removed: dict[str, Any] = getattr(options_type, "removed", {})
    for option, left in removed.items():  # from an older checkpoint or run
        if options.get(option, left) != left:
            raise AvelError(
                f"option {option} of {name} is {options[option]!r}",
                f"{left!r}; the other values were removed because they made no difference",
                "leave it out, or use avel at the tag study-options (commit 16df2dc22bfb), which still has them",
            )
    chosen = {option: value for option, value in options.items() if option not in removed}
    known = _options(model)
    for option, value in chosen.items():
        if option not in known:
            if not known:
                raise AvelError(f"{name} has no option {option!r}", f"none: {name} has no options", "leave it out")
            raise AvelError(
                f"{name} has no option {option!r}", f"one of these\n{describe_options(name)}", "check the spelling"
            )
        kind, meaning, _, tasks = known[option]
        if not _accepts(kind, value):
            raise AvelError(f"option {option} of {name} is {value!r}", _values(kind), meaning)
        if tasks and task not in tasks:
            raise AvelError(
                f"option {option} of {name} in task {task}", f"it only in task {' or '.join(tasks)}", "leave it out"
            )
    network = model(
        audio_dim=audio_dim,
        visual_dim=visual_dim,
        grid=grid,
        num_classes=num_classes,
        task=task,
        **({"options": options_type(**chosen)} if options_type else {}),
    )
    assert isinstance(network, nn.Module)
    return network


def describe_options(name: str) -> str:
    """A model's options, one per line: name, tasks (if not all), meaning, values, default."""
    return "\n".join(
        f"    {option}: {meaning} ({_values(kind)}; {_shown(default)})"
        for option, (kind, meaning, default, _) in _options(MODELS[name]).items()
    )


def _shown(default: Any) -> str:
    """A default as the user would type it."""
    if isinstance(default, bool):
        return str(default).lower()
    return f"{default:.6g}" if isinstance(default, float) else str(default)


def _accepts(kind: Any, value: Any) -> bool:
    """Whether an option of that type may have that value; an int may stand for a float."""
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    accepted = (int, float) if kind is float else kind
    return isinstance(value, accepted) and isinstance(value, bool) is (kind is bool)


def _values(kind: Any) -> str:
    """What an option of that type may be."""
    if get_origin(kind) is Literal:
        return " | ".join(get_args(kind))
    return {int: "a whole number", float: "a number", bool: "true | false"}[kind]


def _options_type(model: type[Model]) -> type[Any] | None:
    """The dataclass of a model's options, from the annotation of its ``options`` argument; None if it has none."""
    return get_type_hints(model.__init__).get("options")


@cache
def _options(model: type[Model]) -> dict[str, tuple[Any, str, Any, Sequence[str]]]:
    """The type, meaning and default of every option, and the tasks that read it, if not all do.

    The meaning is the sentence under the field, as in `TrainConfig`; an annotation names the tasks.
    """
    options_type = _options_type(model)
    if options_type is None:
        return {}
    sentences = {each.arg_name: each.description or "" for each in parse_from_object(options_type).params}
    hints = get_type_hints(options_type, include_extras=True)
    found: dict[str, tuple[Any, str, Any, Sequence[str]]] = {}
    for option in fields(options_type):
        hint = hints[option.name]
        kind, *tasks = get_args(hint) if get_origin(hint) is Annotated else (hint,)
        meaning = " ".join(sentences[option.name].split()).removesuffix(".")
        if tasks:
            meaning = f"task {' or '.join(tasks)}: {meaning}"
        found[option.name] = (kind, meaning, option.default, tasks)
    return found
