"""Kinds of config fields with their ranges: declared once, checked for file and flag alike, shown in ``--help``.

pydantic reads the bounds, tyro the text in the place of the value.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Annotated

from annotated_types import Interval, MinLen
from pydantic import AfterValidator, StringConstraints
from tyro.conf import arg

from specalign.errors import UserError, unknown
from specalign.text import NAME, NAME_RULE

MANY = 2**53
"""More than anything that is counted here, and exact in a float."""
LONGEST = 2**20
"""Tokens."""
LONGEST_DRAFT = 128
DEEPEST = 2**12
"""Layers of a model."""
MOST_AT_ONCE = 2**16
"""Of what is held or made at a time: prompts of a batch, requests in flight, repeats of a measurement."""

Count = Annotated[int, Interval(ge=1, le=MANY), arg(metavar="INT>=1")]
CountOrZero = Annotated[int, Interval(ge=0, le=MANY), arg(metavar="INT>=0")]
Batch = Annotated[int, Interval(ge=1, le=MOST_AT_ONCE), arg(metavar="1..65536")]
Batches = Annotated[tuple[Batch, ...], arg(metavar="[1..65536 ...]")]
Tokens = Annotated[int, Interval(ge=1, le=LONGEST), arg(metavar="1..1048576")]
Depth = Annotated[int, Interval(ge=1, le=DEEPEST), arg(metavar="1..4096")]
DepthOrZero = Annotated[int, Interval(ge=0, le=DEEPEST), arg(metavar="0..4096")]
Layers = Annotated[tuple[CountOrZero, ...], arg(metavar="[INT>=0 ...]")]
Gamma = Annotated[int, Interval(ge=1, le=LONGEST_DRAFT), arg(metavar="1..128")]
DraftOrZero = Annotated[int, Interval(ge=0, le=LONGEST_DRAFT), arg(metavar="0..128")]
Unroll = Annotated[int, Interval(ge=1, le=16), arg(metavar="1..16")]
Gammas = Annotated[tuple[Gamma, ...], MinLen(1), arg(metavar="1..128 ...")]
Threads = Annotated[int, Interval(ge=0, le=4096), arg(metavar="0..4096")]
Seed = Annotated[int, Interval(ge=0, lt=2**32), arg(metavar="0..2^32-1")]
"""Seeds are multiplied by a million, for epochs, and still are what torch takes."""
Seeds = Annotated[tuple[Seed, ...], arg(metavar="[0..2^32-1 ...]")]

Above0 = Annotated[float, Interval(gt=0), arg(metavar="FLOAT>0")]
NotNegative = Annotated[float, Interval(ge=0), arg(metavar="FLOAT>=0")]
Temperature = Annotated[float, Interval(ge=0, le=100), arg(metavar="0..100")]
Temperatures = Annotated[tuple[Temperature, ...], MinLen(1), arg(metavar="0..100 ...")]
Share = Annotated[float, Interval(ge=0, le=1), arg(metavar="0..1")]
ShareAbove0 = Annotated[float, Interval(gt=0, le=1), arg(metavar="0<FLOAT<=1")]
ShareBelow1 = Annotated[float, Interval(ge=0, lt=1), arg(metavar="0<=FLOAT<1")]

Name = Annotated[str, StringConstraints(pattern=NAME)]
"""Of an arm, a drafter, a method."""


def _device(name: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?", name):
        raise unknown("device", name, ("auto", "cpu", "cuda", "cuda:N", "mps"))
    return name


def _output(path: Path) -> Path:
    if not str(path).isprintable():
        raise ValueError("holds characters that cannot be printed")
    return path


def _words(line: str) -> str:
    shlex.split(line)
    return line


def _function(name: str) -> str:
    if name and not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_<][\w.<>]*", name):
        raise ValueError("must be MODULE:FUNCTION")
    return name


Arguments = Annotated[str, AfterValidator(_words)]
"""Words of a command in one."""
Function = Annotated[str, AfterValidator(_function), arg(metavar="MODULE:FUNCTION")]
"""Something that Python imports; empty: nothing."""
Device = Annotated[str, AfterValidator(_device)]
Output = Annotated[Path, AfterValidator(_output)]


def require_name(kind: str, name: str) -> str:
    """``name``; raises UserError for one that could not stand in a folder's name or a shell's word."""
    if not re.fullmatch(NAME, name):
        raise UserError(f"{kind} {name!r}: names are {NAME_RULE}")
    return name
