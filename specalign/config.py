"""Configuration at the edge: frozen dataclasses, filled from a TOML file and command-line flags.

A flag wins over the file, the file over the default. Fields' one-line docs are the ``--help`` text.
An unknown key or flag is an error that says what was probably meant. The code behind the command line
takes plain arguments and never sees these functions.
"""

from __future__ import annotations

import difflib
import io
import json
import math
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import asdict, fields, is_dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import tomli_w
import tyro
from pydantic import AfterValidator, ConfigDict, TypeAdapter, ValidationError

from specalign.errors import UserError, unknown
from specalign.files import write_text
from specalign.text import NAME_RULE

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
"""Set as ``__pydantic_config__`` of every config dataclass: unknown keys of a file are errors, and so is NaN."""
WORDS = {
    "greater_than_equal": "must be at least {ge:g}",
    "greater_than": "must be above {gt:g}",
    "less_than_equal": "must be at most {le:g}",
    "less_than": "must be below {lt:g}",
    "finite_number": "must be a finite number",
    "too_short": "must not be empty",
    "string_pattern_mismatch": f"must be {NAME_RULE}",
    "value_error": "{error}",
}
"""Kind of problem, as pydantic names it -> our words for it."""

LARGEST_FILE = 2**20
"""Bytes; a parser takes seconds for a hostile one."""
QUOTED = r"'([^']*)'"

C = TypeVar("C")


def _parse_weights(words: list[str]) -> dict[str, float]:
    weights: dict[str, float] = {}
    for word in words:
        name, _, value = word.partition("=")
        weights[name] = float(value) if value else 1.0
    return weights


Weights = Annotated[
    dict[str, float],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar="NAME[=WEIGHT] ...",
        instance_from_str=_parse_weights,
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda value: [f"{name}={weight:g}" for name, weight in value.items()],
    ),
]
"""A table of names and numbers: ``{forward_kl = 0.5}`` in TOML, ``forward_kl=0.5 rank_order`` on the line."""


def _parse_arguments(words: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        found[name] = _json_or_text(value) if equals else True
    return found


def _json_or_text(word: str) -> Any:
    """A number, a truth value or a list of them as JSON has it; else the word."""
    try:
        found = json.loads(word)
    except (ValueError, RecursionError):
        return word
    return word if found is None or isinstance(found, dict) else found


def _named_values(table: dict[str, Any]) -> dict[str, Any]:
    for name, value in table.items():
        if not name.isidentifier():
            raise ValueError("must have names as keys")
        for each in value if isinstance(value, list) else [value]:
            if not isinstance(each, bool | int | str) and not (isinstance(each, float) and math.isfinite(each)):
                raise ValueError("must have texts, numbers, truth values or lists of them as values")
    return table


NamedValues = Annotated[
    dict[str, Any],
    AfterValidator(_named_values),
    tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar="NAME=VALUE ...",
        instance_from_str=_parse_arguments,
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda value: [f"{name}={json.dumps(each)}" for name, each in value.items()],
    ),
]
"""A table of names and values: ``{enable_thinking = false}`` in TOML, ``enable_thinking=false`` on the line."""


def load_config(config: type[C], path: Path) -> C:
    """Read a TOML file into a config dataclass; fields that it does not name keep their defaults."""
    return from_table(config, read_table(path), str(path))


def read_table(path: Path) -> dict[str, Any]:
    """What a TOML file says."""
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise UserError(f"{path} is larger than a config can be ({LARGEST_FILE} bytes)")
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"no such file: {path}") from None
    except ValueError as error:  # not TOML, not UTF-8, or a number of thousands of digits
        raise UserError(f"{path} is not valid TOML: {error}") from None
    except RecursionError:
        raise UserError(f"{path} is not valid TOML: it is nested too deep") from None


def from_table(config: type[C], values: dict[str, Any], source: str) -> C:
    """A config dataclass from a table; ``source`` says in errors where that stands."""
    _refuse_unknown_keys(config, values, source)
    try:
        found = TypeAdapter(config).validate_python(values)
        _require_text(values, source)
    except ValidationError as error:
        raise UserError(_problem(error, source)) from None
    except RecursionError:
        raise UserError(f"{source or 'a value'} is nested too deep") from None
    return found


def checked(config: C) -> C:
    """The config, its values held against the ranges of its fields as those of a file are. Raises UserError."""
    return from_table(type(config), _without_classes(config), "")


def parse_flags(config: type[C], arguments: Sequence[str], *, default: C, program: str, description: str) -> C:
    """Read flags over ``default``. An unknown flag, or a bad value of either, raises UserError; --help exits."""
    complaint = io.StringIO()
    try:
        with redirect_stderr(complaint):
            value, rest = tyro.cli(
                config,
                args=list(arguments),
                default=default,
                prog=program,
                description=description,
                return_unknown_args=True,
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UserError(_plain(complaint.getvalue())) from None
    if rest:
        raise _unknown_flag(config, rest[0])
    return checked(value)


def flag_value(arguments: Sequence[str], flag: str) -> str | None:
    """What follows the last ``flag``, as ``--flag value`` or ``--flag=value``; None where it is missing."""
    found = None
    for word, following in zip_longest(arguments, arguments[1:]):
        if word == flag:
            found = following
        elif word.startswith(f"{flag}="):
            found = word.removeprefix(f"{flag}=")
    return found


def write_config(path: Path, config: Any) -> None:
    """Write the resolved configuration as TOML, atomically. Empty optional fields are left out."""
    write_text(path, tomli_w.dumps(as_table(config)))


def as_table(config: Any) -> dict[str, Any]:
    """A config dataclass as plain tables, numbers and strings; None is left out (TOML has no null)."""
    return _plain_value(asdict(config))


def flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one, of dotted names."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def gathered(arguments: Sequence[str], flag: str) -> list[str]:
    """Put the values of a repeated ``flag`` behind one, so that ``--f a --f b`` and ``--f a b`` are the same."""
    values: list[str] = []
    rest: list[str] = []
    taking = False
    for word in arguments:
        if word == flag or word.startswith(f"{flag}="):
            taking = word == flag
            values += [] if taking else [word.removeprefix(f"{flag}=")]
        elif taking and not word.startswith("-"):
            values.append(word)
        else:
            taking = False
            rest.append(word)
    return [*rest, flag, *values] if values else list(arguments)


def cache_dir() -> Path:
    """Where converted models and teacher data are kept: $SPECALIGN_CACHE, else the platform's cache folder."""
    import platformdirs

    chosen = os.environ.get("SPECALIGN_CACHE")
    return Path(chosen) if chosen else Path(platformdirs.user_cache_dir("specalign"))


def _plain_value(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain_value(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, (list, tuple)):
        return [_plain_value(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value


def _without_classes(value: Any) -> Any:
    """Config dataclasses as tables; all else stays what it is."""
    if is_dataclass(value):
        return {each.name: _without_classes(getattr(value, each.name)) for each in fields(value)}
    return {key: _without_classes(inner) for key, inner in value.items()} if isinstance(value, dict) else value


def _problem(error: ValidationError, source: str) -> str:
    """The first problem that pydantic found, in one line: where, what, and what was there."""
    problem = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in problem["loc"] if isinstance(part, str) and part != "[key]")
    prefix = f"{source}: {where}" if source else where
    kind, context = problem["type"], problem.get("ctx", {})
    if kind == "literal_error":
        return f"{prefix}: {unknown('value', problem['input'], re.findall(QUOTED, context['expected']))}"
    if kind in WORDS:
        return f"{prefix} {WORDS[kind].format(**context)}, not {_short(problem['input'])}"
    return f"{prefix} = {_short(problem['input'])}: {problem['msg']}"


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # thousands of digits, or of brackets
        return f"a {type(value).__name__} too large to show"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _require_text(value: Any, source: str, where: str = "") -> None:
    """Raise UserError for a text that no file can hold, or no system call takes."""
    if isinstance(value, dict):
        for key, inner in value.items():
            _require_text(key, source, where)
            _require_text(inner, source, f"{where}.{key}" if where else str(key))
    elif isinstance(value, (list, tuple)):
        for inner in value:
            _require_text(inner, source, where)
    elif isinstance(value, (str, Path)) and ("\0" in str(value) or not _is_unicode(str(value))):
        prefix = f"{source}: {where}" if source else where
        raise UserError(f"{prefix} is not text: {str(value)!r} holds a zero byte or bytes that are not UTF-8")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refuse_unknown_keys(config: Any, values: dict[str, Any], source: str, prefix: str = "") -> None:
    hints = get_type_hints(config)
    for key, value in values.items():
        if key not in hints:
            names = [prefix + field.name for field in fields(config)]
            raise UserError(f"{source}: {unknown('key', prefix + key, names)}")
        if isinstance(value, dict) and is_dataclass(hints[key]):
            _refuse_unknown_keys(hints[key], value, source, f"{prefix}{key}.")


def _flag_names(config: Any, prefix: str = "--") -> list[str]:
    names = []
    for name, hint in get_type_hints(config).items():
        if is_dataclass(hint):
            names += _flag_names(hint, f"{prefix}{name}.")
        elif not name.startswith("__"):
            names.append((prefix + name).replace("_", "-"))
    return names


def _unknown_flag(config: Any, word: str) -> UserError:
    name = word.split("=")[0]
    close = difflib.get_close_matches(name.replace("_", "-"), _flag_names(config), n=1)
    guess = f"; did you mean {close[0]}?" if close else ""
    return UserError(f"unknown argument {name!r}{guess} (see --help for all)")


def _plain(box: str) -> str:
    """What tyro's framed message says, without the frame, its title and its pointers to the help."""
    lines = [line.strip("│╭╮╰╯─ ") for line in box.splitlines()[1:]]
    message = []
    for line in lines:
        if line.startswith(("Argument helptext", "For full helptext")):
            break
        message.append(line)
    return " ".join(message).strip()
