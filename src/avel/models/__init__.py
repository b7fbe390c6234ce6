"""The models by name. A new one is one file, one line in ``MODELS``, one YAML and one table row."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Literal, get_args, get_origin, get_type_hints

from torch import nn

from avel.errors import AvelError
from avel.models.ccln import CCLN
from avel.types import Model

MODELS: dict[str, type[Model]] = {"ccln": CCLN}


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
        task: what it is trained for: ``full``, ``weak`` or ``cml``.
        options: the model's own, as ``describe_options`` lists them.

    Raises:
        AvelError: there is no such model or option, the model does not have the task, or an option has a value of the
            wrong type or is not read in this task.
    """
    if name not in MODELS:
        raise AvelError(f"no model is called {name!r}", f"one of {', '.join(sorted(MODELS))}", "choose one of these")
    model = MODELS[name]
    if task not in model.tasks:
        raise AvelError(f"task {task!r} for {name}", " or ".join(model.tasks), "choose one of these, or another model")
    known = _options(model)
    for option, value in options.items():
        if option not in known:
            raise AvelError(
                f"{name} has no option {option!r}", f"one of these\n{describe_options(name)}", "check the spelling"
            )
        kind, meaning, _, tasks = known[option]
        if not _accepts(kind, value):
            raise AvelError(f"option {option} of {name} is {value!r}", _values(kind), meaning)
        if tasks and task not in tasks:
            raise AvelError(
                f"option {option} of {name} in task {task}", f"it in task {' or '.join(tasks)} alone", "leave it out"
            )
    network = model(
        audio_dim=audio_dim, visual_dim=visual_dim, grid=grid, num_classes=num_classes, task=task, **options
    )
    assert isinstance(network, nn.Module)
    return network


def describe_options(name: str) -> str:
    """A model's options, one a line: name, the tasks if not for all, meaning, values, default."""
    return "\n".join(
        f"    {option}: {meaning} ({_values(kind)}; {_shown(default)})"
        for option, (kind, meaning, default, _) in _options(MODELS[name]).items()
    )


def _shown(default: Any) -> str:
    """A default as it is typed."""
    if isinstance(default, bool):
        return str(default).lower()
    return f"{default:.6g}" if isinstance(default, float) else str(default)


def _accepts(kind: Any, value: Any) -> bool:
    """Whether an option of that type may have that value; a whole number will do for a fraction."""
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    accepted = (int, float) if kind is float else kind
    return isinstance(value, accepted) and isinstance(value, bool) is (kind is bool)


def _values(kind: Any) -> str:
    """What an option of that type may be."""
    if get_origin(kind) is Literal:
        return " | ".join(get_args(kind))
    return {int: "a whole number", float: "a number", bool: "true | false"}[kind]


def _options(model: type[Model]) -> dict[str, tuple[Any, str, Any, Sequence[str]]]:
    """Of every argument of ``__init__`` that has a default: type, meaning, default, and the tasks that read it.

    It is annotated with its meaning, and then with the tasks, unless all of them read it.
    """
    hints = get_type_hints(model.__init__, include_extras=True)
    options = {}
    for parameter in inspect.signature(model.__init__).parameters.values():
        if parameter.default is not parameter.empty:
            meaning, tasks = (*hints[parameter.name].__metadata__, ())[:2]
            if tasks:
                meaning = f"task {' or '.join(tasks)}: {meaning}"
            options[parameter.name] = (hints[parameter.name].__origin__, meaning, parameter.default, tasks)
    return options
