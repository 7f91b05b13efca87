"""What a reader asks of a published run: is it whole, is it one run, and do its figures follow?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from specalign.analysis.consistency import (
    impossible_records,
    unlike_its_plan,
    unlike_its_probes,
    unlike_the_clock,
)
from specalign.analysis.partial import with_true_status
from specalign.analysis.recompute import is_current, untrue_checks, untrue_figures
from specalign.chain import links, seal
from specalign.run_files import RECORDS_FILE, RunFiles, read_run

Decode = Callable[[list[int]], str]
"""Ids of an output -> its text, by the run's tokenizer."""


@dataclass(frozen=True)
class AtHand:
    """What of the run's inputs the reader has too."""

    decode: Decode | None = None
    references: dict[tuple[str, int], str] | None = None
    """Prompt -> reference, of data whose hash is the run's."""


@dataclass(frozen=True)
class Audit:
    """What was found."""

    run: RunFiles
    seal: str
    problems: list[str]
    unchecked: list[str]
    """What these files do not let a reader check, or what is not at hand."""


def audit(folder: Path, at_hand: AtHand) -> Audit:
    """Check a complete run. Raises UserError where its files cannot be read or are not those of its hashes."""
    run = read_run(folder)
    if run.result.status != "complete":
        status = with_true_status(folder, run.result).status
        return Audit(run, "", [f"the run is not complete ({status}): its files have no hashes"], [])
    path = folder / RECORDS_FILE
    problems = [
        *_broken_chain(path, run),
        *unlike_its_plan(run),
        *impossible_records(run),
        *unlike_its_probes(run),
        *unlike_the_clock(run),
        *untrue_figures(run),
        *untrue_checks(run),
        *_other_texts(run, at_hand),
    ]
    return Audit(run, seal(path, run.result), problems, _unchecked(run, at_hand))


def _broken_chain(path: Path, run: RunFiles) -> list[str]:
    """The first record whose link is missing or another; files of schema version 1 have none."""
    for place, (record, (carried, due)) in enumerate(zip(run.records, links(path, run.result), strict=True)):
        if carried != due and (carried or record.schema_version > 1):
            before = (
                "the records before it" if place else "command, config, provenance or drafters in result.json"
            )
            return [f"the chain is broken: record {record.order} was changed, or {before}"]
    return []


def _other_texts(run: RunFiles, at_hand: AtHand) -> list[str]:
    good = [record for record in run.records if record.status == "ok"]
    found = []
    if at_hand.decode:
        other = [record.order for record in good if at_hand.decode(record.token_ids) != record.text]
        found += [f"the texts of records {other[:5]} are not what their ids decode to"] if other else []
    if at_hand.references is not None:
        known = at_hand.references
        foreign = [r.order for r in good if known.get((r.prompt_id, r.turn)) != r.reference]
        found += [f"the references of records {foreign[:5]} are not the data's"] if foreign else []
    return found


def _unchecked(run: RunFiles, at_hand: AtHand) -> list[str]:
    result, good = run.result, [record for record in run.records if record.status == "ok"]
    version = result.metrics_version
    told = {
        "command, hardware and commit: records are not chained (schema version 1)": any(
            not record.chain for record in run.records
        ),
        "one method's times, all scaled alike: there is no second clock (schema version 1)": any(
            record.call_s is None for record in good
        ),
        "references: their hash was not recorded, and the data are not at hand": (
            "references_sha256" not in result.provenance and at_hand.references is None
        ),
        "texts: the target's tokenizer is not at hand": at_hand.decode is None,
        f"checks, and figures that metrics version {version} did not have": not is_current(run),
        "why outputs differ from the plain target's: that took its logits": any(
            row.n_tie_divergences + row.n_numeric_divergences for row in result.rows
        ),
    }
    return [what for what, applies in told.items() if applies]
