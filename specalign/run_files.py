"""Reading and writing what a run left: `result.json`, `records.jsonl`, `probes.jsonl`.

What stands in them is said in ``results.py``, ``records.py`` and ``probes.py``. A file that was damaged, cut off
or changed is refused by one line; the plain form and the compressed one (``.gz``) are read alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError
from pydantic_core import to_json

from specalign.errors import UserError
from specalign.files import byte_lines, file_sha256, read_text, stored, write_text
from specalign.probes import Probe
from specalign.records import SCHEMA_VERSION, GenerationRecord, record_key
from specalign.results import BenchmarkResult

RESULT_FILE = "result.json"
RECORDS_FILE = "records.jsonl"
PROBES_FILE = "probes.jsonl"

_RECORD = TypeAdapter(GenerationRecord)
_RESULT = TypeAdapter(BenchmarkResult)
_PROBE: TypeAdapter[Probe] = TypeAdapter(Annotated[Probe, Field(discriminator="kind")])

SCHEMAS: dict[str, Callable[[], dict[str, Any]]] = {
    "result": _RESULT.json_schema,
    "record": _RECORD.json_schema,
    "probe": _PROBE.json_schema,
}
"""JSON schemas of result.json, and of a line of records.jsonl and of probes.jsonl; published in docs/schemas."""


@dataclass(frozen=True)
class RunFiles:
    """Everything that a run left."""

    result: BenchmarkResult
    records: list[GenerationRecord]
    probes: list[Probe]


def read_run(folder: Path) -> RunFiles:
    """Read a run folder. Raises UserError where its raw files are not the ones that its result was made from."""
    result = read_result(folder)
    require_untouched(folder, result)
    return RunFiles(result, list(read_records(folder / RECORDS_FILE)), read_probes(folder / PROBES_FILE))


def require_untouched(folder: Path, result: BenchmarkResult) -> None:
    """Raise UserError where a complete run's records or probes are missing, cut off or changed."""
    if result.status != "complete":
        return
    for name, expected in ((RECORDS_FILE, result.records_sha256), (PROBES_FILE, result.probes_sha256)):
        path = folder / name
        if not expected and name == PROBES_FILE:
            continue
        if not stored(path).is_file():
            raise UserError(f"no such file: {path}")
        if file_sha256(path) != expected:
            raise UserError(f"{path} was changed after the run: its hash is not the one in result.json")


def write_result(run: Path, result: BenchmarkResult) -> None:
    """Write result.json into the run folder, atomically."""
    write_text(run / RESULT_FILE, to_json(result, indent=2).decode() + "\n")


def read_result(run: Path) -> BenchmarkResult:
    """Read result.json of a run folder. Raises UserError where it is missing or not valid."""
    path = run / RESULT_FILE
    try:
        result = _RESULT.validate_json(read_text(path))
    except ValidationError as error:
        raise UserError(f"{path} is not a valid result: {first_problem(error)}") from None
    if problem := _newer(result.schema_version):
        raise UserError(f"{path}: {problem}")
    return result


def record_line(record: GenerationRecord) -> str:
    """One line of records.jsonl, newline included."""
    return to_json(record).decode() + "\n"


def read_records(path: Path) -> Iterator[GenerationRecord]:
    """Read records.jsonl. A damaged, impossible or repeated line raises UserError with its number."""
    first: dict[tuple[object, ...], int] = {}
    for number, line in enumerate(byte_lines(path), start=1):
        try:
            record = _RECORD.validate_json(line)
        except ValidationError as error:
            raise UserError(f"{path}, line {number}: {first_problem(error)}") from None
        problem = _newer(record.schema_version) or _impossible(record)
        if problem:
            raise UserError(f"{path}, line {number}: {problem}")
        if (other := first.setdefault(record_key(record), number)) != number:
            raise UserError(f"{path}, line {number}: the same generation as line {other}")
        yield record


def probe_lines(probes: Iterable[Probe]) -> str:
    """Lines of probes.jsonl, each with its newline."""
    return "".join(to_json(probe).decode() + "\n" for probe in probes)


def read_probes(path: Path) -> list[Probe]:
    """Read probes.jsonl; empty where there is none. A damaged line raises UserError with its number."""
    if not stored(path).exists():
        return []
    probes = []
    for number, line in enumerate(byte_lines(path), start=1):
        try:
            probes.append(_PROBE.validate_json(line))
        except ValidationError as error:
            raise UserError(f"{path}, line {number}: {first_problem(error)}") from None
    return probes


def first_problem(error: ValidationError) -> str:
    """The first problem that pydantic found, in one line: where, what."""
    problem = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in problem["loc"])
    return f"{where}: {problem['msg']}" if where else problem["msg"]


def _newer(version: int) -> str:
    return f"schema version {version} is of a newer specalign" if version > SCHEMA_VERSION else ""


def _impossible(record: GenerationRecord) -> str:
    """What no generation can have been like; empty where there is nothing."""
    steps = record.steps
    times = [
        record.prefill_s,
        record.decode_s,
        *((*steps.draft_s, *steps.verify_s, *steps.rest_s) if steps else ()),
    ]
    if record.status == "ok" and record.wall_s <= 0:
        return f"wall_s is {record.wall_s:g}; a generation takes time"
    if min(times) < 0:
        return f"a time of {min(times):g} seconds"
    if steps and len({len(column) for column in vars(steps).values()}) > 1:
        return "the columns of its steps have different lengths"
    return ""
