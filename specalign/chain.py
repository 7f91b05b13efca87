"""The hash chain over a run's records: each line is bound to all before it, and the first to what was run on what.

    link_0 = H(opening)        link_i = H(link_(i-1) line_i)        H: SHA-256, in hexadecimal

``opening`` is what ``result.json`` holds before the first generation: command, config, provenance, drafters. ``line_i``
is a line of ``records.jsonl`` as it was written, with an empty ``chain``; its ``chain`` is link_i. Where a run was
resumed, the link before its next record is H(link stamp), the stamp being the provenance of that session.

Whoever rewrites the files can compute all links anew. The seal, H(last link, hash of probes.jsonl), is one number that
stands for all of it: quoted where they cannot write, it tells.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from specalign.files import byte_lines
from specalign.records import GenerationRecord
from specalign.results import BenchmarkResult
from specalign.run_files import RECORDS_FILE, read_result, record_line

CHAIN = re.compile(rb'"chain":"([0-9a-f]*)"}$')
RESUMED = "resumed"
"""Key of the provenance: one stamp a later session, with the number of records ``after`` which it began."""


def opening_link(result: BenchmarkResult) -> str:
    """link_0. What is known only at the end of a run (``busy_during``) and later sessions are left out."""
    provenance = {key: value for key, value in result.provenance.items() if key != RESUMED}
    hardware = provenance.get("hardware", {})
    provenance["hardware"] = {key: value for key, value in hardware.items() if key != "busy_during"}
    drafters = [[info.name, info.source, info.method, info.training] for info in result.drafters]
    return _hash_of([result.suite, result.command, result.config, provenance, drafters, result.n_requested])


def links(path: Path, result: BenchmarkResult) -> Iterator[tuple[str, str]]:
    """(The link that a line of records.jsonl carries, empty for none; the link that it should carry), line by line."""
    sessions = _sessions(result)
    previous = opening_link(result)
    for number, line in enumerate(byte_lines(path)):
        previous = _begun(previous, sessions.get(number, []))
        found = CHAIN.search(line)
        previous = _link(previous, CHAIN.sub(b'"chain":""}', line))
        yield found[1].decode() if found else "", previous


def last_link(path: Path, result: BenchmarkResult) -> str:
    """The link of the last record, or of the opening where there is none."""
    *_, last = [opening_link(result), *(due for _, due in links(path, result))]
    return last


def seal(path: Path, result: BenchmarkResult) -> str:
    """One hash for opening, records and probes of a complete run."""
    return _hash_of([last_link(path, result), result.probes_sha256])


@contextmanager
def appending(folder: Path) -> Iterator[Callable[[GenerationRecord], None]]:
    """A function that appends a record, with its link, to the run that is open in ``folder``, and flushes it."""
    result, path = read_result(folder), folder / RECORDS_FILE
    n_records = sum(1 for _ in byte_lines(path))
    last = _begun(last_link(path, result), _sessions(result).get(n_records, []))
    with open(path, "a", encoding="utf-8") as file:

        def append(record: GenerationRecord) -> None:
            nonlocal last
            line = record_line(replace(record, chain=""))
            last = _link(last, line.rstrip("\n").encode())
            file.write(line.replace('"chain":""}\n', f'"chain":"{last}"}}\n'))
            file.flush()

        yield append


def continued(before: BenchmarkResult | None, now: BenchmarkResult, folder: Path) -> BenchmarkResult:
    """``now`` with the provenance of the session that began the run, its own noted as a later one's."""
    if before is None:
        return now
    n_records = sum(1 for _ in byte_lines(folder / RECORDS_FILE))
    sessions = [*before.provenance.get(RESUMED, []), {"after": n_records} | now.provenance]
    return replace(
        now,
        command=before.command,
        config=before.config,
        provenance=before.provenance | {RESUMED: sessions},
        drafters=before.drafters,
    )


def _sessions(result: BenchmarkResult) -> dict[int, list[dict[str, Any]]]:
    """Number of records -> the stamps of the sessions that began after so many."""
    found: dict[int, list[dict[str, Any]]] = {}
    for stamp in result.provenance.get(RESUMED, []):
        found.setdefault(stamp["after"], []).append(stamp)
    return found


def _begun(link: str, stamps: list[dict[str, Any]]) -> str:
    for stamp in stamps:
        link = _hash_of([link, stamp])
    return link


def _link(previous: str, line: bytes) -> str:
    return sha256(previous.encode() + line).hexdigest()


def _hash_of(value: Any) -> str:
    return sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
