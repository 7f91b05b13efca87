"""The student folder: a plain Hugging Face checkpoint, and beside it what it was made from.

provenance.json says "running" from the start on, so that a crash leaves it, and "complete" at the very end. What the
run writes there it lists first (``specalign/folders.py``).
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from specalign import curves, folders
from specalign.config import as_table, flat, load_config, write_config
from specalign.errors import UserError
from specalign.files import whole_lines, write_json, write_jsonl
from specalign.training.config import TrainConfig

RECIPE, LOG, PROVENANCE = curves.RECIPE, curves.LOG, curves.PROVENANCE
VALIDATION = "validation.jsonl"
HELD_OUT = "held_out.jsonl"
FREE = ("output", "overwrite", "recipe", "compare", "sweep", "logging", "device")
"""Keys that a rerun may change without becoming another run."""


def is_complete(config: TrainConfig) -> bool:
    """Whether this config's folder holds its finished run.

    Raises UserError where the folder holds something else, or, with ``overwrite``, what may not be removed.
    """
    run = config.output
    if config.overwrite:
        folders.removable(run, inputs(config))
        return False
    if folders.is_empty(run):
        return False
    _require_same_recipe(run, config)
    return read_provenance(run).get("status") == "complete"


def inputs(config: TrainConfig) -> dict[str, str]:
    """What the config reads, by option: --overwrite never removes it."""
    return {
        "teacher.model": config.teacher.model,
        "student.model": config.student.model,
        "data.source": config.data.source,
        "objective.reference": config.objective.reference,
    }


def claim(config: TrainConfig, stamp: Mapping[str, Any]) -> None:
    """Make the output folder this config's, without an older run's files with ``overwrite``; an unfinished run stays
    as it is, and so does the recipe that it began with."""
    run = config.output
    if config.overwrite:
        folders.clear(run, inputs(config))
    folders.begin(run)
    if not (run / RECIPE).exists():
        write_config(run / RECIPE, config)
    write_json(run / PROVENANCE, {"status": "running", **stamp})


def read_provenance(run: Path) -> dict[str, Any]:
    """provenance.json of a run; empty where there is none yet."""
    try:
        found = json.loads((run / PROVENANCE).read_text(encoding="utf-8"))
        return dict(found.items())
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError, RecursionError) as error:  # not JSON, no table, or nested too deep
        raise UserError(f"{run / PROVENANCE} is damaged ({error}); use --overwrite to start again") from None


def write_model(run: Path, model: Any, tokenizer: Any, draft_vocabulary: Any) -> None:
    """Put the checkpoint's files into ``run``, the trimmed ids of its head included."""
    from specalign.models.vocabulary import save_draft_vocabulary
    from specalign.training.sharding import state_to_save

    if draft_vocabulary is not None:
        save_draft_vocabulary(run, draft_vocabulary.cpu())

    def save(partial: Path) -> None:
        model.save_pretrained(partial, state_dict=state_to_save(model))
        tokenizer.save_pretrained(partial)

    put(run, save)


def put(run: Path, save: Callable[[Path], None]) -> None:
    """Put the files that ``save`` writes into ``run``, config.json last: with it, the checkpoint is whole."""
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=run))
    try:
        save(partial)
        folders.add_all(run / file.name for file in partial.iterdir())
        for file in sorted(partial.iterdir(), key=lambda path: path.name == "config.json"):
            file.replace(run / file.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def append_log(run: Path, fields: Mapping[str, Any]) -> None:
    """Add one line to train.jsonl."""
    folders.add(run / LOG)
    with open(run / LOG, "a", encoding="utf-8") as file:
        file.write(json.dumps(fields, allow_nan=False) + "\n")


def read_log(run: Path) -> list[dict[str, Any]]:
    """The whole lines of train.jsonl; a last line that was cut off by a crash is left out."""
    return whole_lines(run / LOG)


def rewind_log(run: Path, step: int) -> None:
    """Drop lines after ``step``: they will be written again."""
    write_jsonl(run / LOG, [line for line in read_log(run) if line["step"] <= step])


def _require_same_recipe(run: Path, config: TrainConfig) -> None:
    path = run / RECIPE
    if not path.is_file() or not ((run / PROVENANCE).exists() or (run / folders.FILES).exists()):
        raise UserError(f"{run} exists and is not a training run; choose another --output")
    theirs = flat(as_table(load_config(TrainConfig, path)))
    ours = flat(as_table(config))
    for key in sorted(theirs.keys() | ours.keys()):
        if key.split(".")[0] not in FREE and theirs.get(key) != ours.get(key):
            raise UserError(
                f"{run} holds a run with {key} = {theirs.get(key)!r}, not {ours.get(key)!r}; "
                f"{folders.advice(run, inputs(config))}"
            )
