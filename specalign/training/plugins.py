"""An objective of the user's own: found by its name, known again by its source, held to the signature of the table.

The user's module is imported when a recipe or a flag names it, and never otherwise.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import torch
from torch import Tensor

from specalign.errors import UserError, unknown
from specalign.losses import Loss
from specalign.training.config import ObjectiveConfig
from specalign.training.memory import is_out_of_memory

SOURCE = "objective's source"
"""What a change of it is called."""
SETTINGS = (int, float, str, type(None))
"""Values that belong to a function's source where it encloses them: a number of a factory, of a partial."""
ROWS, COLUMNS = (2, 3), 7
"""Shape of the logits that an objective is tried on."""


@dataclass(frozen=True)
class Plugin:
    """A loss from outside the table."""

    label: str
    """MODULE:FUNCTION."""
    loss: Loss
    source_sha256: str
    """Of the function, and of the file that defines it unless that is a script, a notebook or a prompt."""


Plugins = Mapping[str, Plugin]
"""Label -> plugin, of those that were handed over as functions; others are imported."""
NONE: Plugins = {}


def plugin_of(config: ObjectiveConfig, given: Plugins = NONE) -> Plugin | None:
    """The plugin that a config names, if it names one. Raises UserError where there is none of this name."""
    if not config.plugin:
        return None
    return given.get(config.plugin) or plugin_from(_imported(config.plugin), config.plugin)


def identity(plugin: Plugin | None) -> dict[str, str]:
    """What a run's identity has of it."""
    return {SOURCE: plugin.source_sha256} if plugin else {}


def plugin_from(function: Callable[..., Any], label: str = "") -> Plugin:
    """The plugin of a callable; ``label`` is where it was found, by default where it says that it was defined."""
    if not callable(function):
        raise UserError(
            f"objective.plugin: {label or repr(function)} is not callable but of type {_kind(function)}"
        )
    inner = _innermost(function)
    name = getattr(inner, "__qualname__", type(inner).__qualname__)
    label = label or f"{inner.__module__}:{name}"
    return Plugin(label, _held(function, label), source_sha256(function))


def try_out(plugin: Plugin, hyper: Mapping[str, Any]) -> None:
    """Raise UserError unless the loss gives a finite number a token, of that token alone, and gradients of it."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(*ROWS, COLUMNS, generator=generator) for _ in range(2))
    labels = torch.randint(COLUMNS, ROWS, generator=generator)
    student.requires_grad_()
    with torch.enable_grad():
        value = plugin.loss(student, teacher, labels=labels, **hyper)
    what = f"objective.plugin {plugin.label}"
    if not torch.isfinite(value).all():
        raise UserError(f"{what} is not finite, on logits drawn from a normal distribution")
    alone = plugin.loss(student[:1], teacher[:1], labels=labels[:1], **hyper)
    if not torch.allclose(alone, value[:1], rtol=1e-4, atol=1e-6):
        raise UserError(
            f"{what} gives a token another loss when other tokens stand beside it: positions are scored in parts, "
            "so return a loss for each token, no mean over them"
        )
    slope = torch.autograd.grad(value.sum(), student, allow_unused=True)[0] if value.requires_grad else None
    if slope is None or not slope.any():
        raise UserError(
            f"{what} gives no gradient to the student's logits: does it detach them, or take argmax?"
        )
    if not torch.isfinite(slope).all():
        raise UserError(f"{what} has a gradient that is not finite, on logits drawn from a normal distribution")


def source_sha256(function: Callable[..., Any]) -> str:
    """What tells one objective from another: its source, its module's, and the plain values that it encloses."""
    inner = _innermost(function)
    module = sys.modules.get(getattr(inner, "__module__", ""))
    file = getattr(module, "__file__", None)
    around = b""
    if module is not None and module.__name__ != "__main__" and file and Path(file).is_file():
        around = Path(file).read_bytes()
    own = _own_source(inner) + repr(_enclosed(function))
    return hashlib.sha256(around + own.encode()).hexdigest()


def _held(function: Callable[..., Any], label: str) -> Loss:
    """``function``, whatever goes wrong in it said in one line."""

    @functools.wraps(function)
    def loss(
        student_logits: Tensor, teacher_logits: Tensor | None, *, labels: Tensor | None = None, **hyper: Any
    ) -> Tensor:
        try:
            found = function(student_logits, teacher_logits, labels=labels, **hyper)
        except Exception as error:
            if isinstance(error, UserError) or is_out_of_memory(error):
                raise
            raise UserError(f"objective.plugin {label}: {_reason(error)}") from error
        wanted = student_logits.shape[:-1]
        if not isinstance(found, Tensor) or found.shape != wanted:
            got = f"shape {list(found.shape)}" if isinstance(found, Tensor) else f"type {_kind(found)}"
            raise UserError(
                f"objective.plugin {label}: logits {list(student_logits.shape)} take a loss for each token, a tensor "
                f"of shape {list(wanted)}, not one of {got}"
            )
        return found

    return loss


def _imported(label: str) -> Any:
    """What a label names; its module is looked for in the current folder too, behind everything else."""
    module_name, _, path = label.partition(":")
    with _current_folder():
        try:
            found: Any = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if not f"{module_name}.".startswith(f"{error.name}."):
                raise UserError(f"objective.plugin {label}: importing it fails: {error}") from error
            raise UserError(
                f"objective.plugin {label}: no module {error.name!r} in the current folder, or where Python looks"
            ) from None
        except Exception as error:
            raise UserError(f"objective.plugin {label}: importing it fails: {_reason(error)}") from error
    for name in path.split("."):
        if not hasattr(found, name):
            raise unknown(f"objective.plugin {label}: function", name, _choices(found))
        found = getattr(found, name)
    return found


@contextmanager
def _current_folder() -> Iterator[None]:
    folder = str(Path.cwd())
    sys.path.append(folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _choices(owner: Any) -> list[str]:
    """Public functions that are defined there."""
    name = owner.__name__ if isinstance(owner, ModuleType) else getattr(owner, "__module__", "")
    return [
        key
        for key, value in vars(owner).items()
        if not key.startswith("_") and callable(value) and getattr(value, "__module__", name) == name
    ]


def _innermost(function: Callable[..., Any]) -> Any:
    """Without partials and wrappers; of an object that is called, its class."""
    while isinstance(function, functools.partial):
        function = function.func
    function = inspect.unwrap(function)
    return function if inspect.isroutine(function) else type(function)


def _own_source(function: Any) -> str:
    """Its lines; its instructions where these are not kept (``python -c``, an older prompt)."""
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        code = getattr(function, "__code__", None)
    if code is None:
        raise UserError(f"objective {function!r}: its source cannot be read; define it in a module")
    return repr(_instructions(code))


def _instructions(code: CodeType) -> tuple[Any, ...]:
    inner = tuple(_instructions(each) if isinstance(each, CodeType) else each for each in code.co_consts)
    return code.co_code, code.co_names, code.co_varnames, inner


def _enclosed(function: Any) -> list[object]:
    """Values of partials, of a closure, of defaults and of an object's attributes, where they are plain."""
    found: list[object] = []
    while isinstance(function, functools.partial):
        found += [*function.args, *sorted(function.keywords.items())]
        function = function.func
    found += [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
    found += sorted(vars(function).items()) if not inspect.isroutine(function) else []
    return [value for value in found if isinstance(value[1] if isinstance(value, tuple) else value, SETTINGS)]


def _reason(error: Exception) -> str:
    """What was raised, and in which line of the user's."""
    said = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
    last = traceback.extract_tb(error.__traceback__)[-1]
    return (
        said if isinstance(error, SyntaxError) else f"{said} ({Path(last.filename).name}, line {last.lineno})"
    )


def _kind(value: object) -> str:
    return type(value).__name__
