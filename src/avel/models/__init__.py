"""The models by name. A new one is one file, one line in ``MODELS``, one YAML and one table row."""

from __future__ import annotations

import inspect
from typing import Any, get_type_hints

from torch import nn

from avel.errors import AvelError
from avel.models.ccln import CCLN

MODELS: dict[str, type[nn.Module]] = {"ccln": CCLN}


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
        task: what it is trained for, e.g. ``full``.
        options: the model's own, as ``describe_options`` lists them.

    Raises:
        AvelError: there is no such model or option, or an option has a value of the wrong type.
    """
    if name not in MODELS:
        raise AvelError(f"no model is called {name!r}", f"one of {', '.join(sorted(MODELS))}", "choose one of these")
    model = MODELS[name]
    known = _options(model)
    for option, value in options.items():
        if option not in known:
            raise AvelError(
                f"{name} has no option {option!r}", f"one of these\n{describe_options(name)}", "check the spelling"
            )
        kind, meaning, _ = known[option]
        accepted = (int, float) if kind is float else kind
        if not isinstance(value, accepted) or isinstance(value, bool) is not (kind is bool):
            raise AvelError(f"option {option} of {name} is {value!r}", f"a number of type {kind.__name__}", meaning)
    return model(audio_dim=audio_dim, visual_dim=visual_dim, grid=grid, num_classes=num_classes, task=task, **options)


def describe_options(name: str) -> str:
    """A model's options, one a line: name, meaning, default."""
    options = _options(MODELS[name])
    return "\n".join(f"    {option}: {meaning} ({default:.6g})" for option, (_, meaning, default) in options.items())


def _options(model: type[nn.Module]) -> dict[str, tuple[type, str, Any]]:
    """Type, meaning and default of every argument of ``__init__`` that has a default."""
    hints = get_type_hints(model.__init__, include_extras=True)
    parameters = inspect.signature(model.__init__).parameters.values()
    return {
        parameter.name: (hints[parameter.name].__origin__, hints[parameter.name].__metadata__[0], parameter.default)
        for parameter in parameters
        if parameter.default is not parameter.empty
    }
