"""What a run was made of besides its recipe: the rows of its data and the weights of its models.

It stands in provenance.json from the start on. A run never goes on, and is never called complete, over others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from transformers import AutoConfig

from specalign import folders
from specalign.data import Example
from specalign.data.examples import Split
from specalign.errors import UserError
from specalign.models.load import resolve_model
from specalign.provenance import weights_sha256
from specalign.training import folder
from specalign.training.config import TrainConfig

IDENTITY = "identity"
"""Key of provenance.json."""
SHORT = 12
"""Characters of a hash that are shown."""


def rows_identity(splits: Mapping[Split, Sequence[Example]]) -> dict[str, str]:
    """Name -> number and hash of a split's rows: documents and references, or conversations, in their order."""
    return {
        ("training rows" if split == "train" else f"{split} rows"): f"{len(rows)}, {_hash(rows)}"
        for split, rows in splits.items()
    }


def models_of(config: TrainConfig) -> dict[str, str]:
    """Kind -> name of each model that the config names."""
    names = {
        "teacher": config.teacher.model,
        "student": config.student.model,
        "reference": config.objective.reference,
    }
    return {kind: name for kind, name in names.items() if name}


def model_identity(name: str, *, trust_remote_code: bool = False) -> str:
    """What tells one model's weights from another's: a hash of local ones, the hub's commit of others."""
    found = resolve_model(name)
    if Path(found).is_dir():
        return weights_sha256(Path(found))
    try:
        known = AutoConfig.from_pretrained(found, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the config of model {name!r}: {str(error).splitlines()[0]}") from None
    return f"{name}@{getattr(known, '_commit_hash', None)}"


def require_same(config: TrainConfig, ours: Mapping[str, str]) -> None:
    """Raise UserError, with what changed, where the run in ``config.output`` was made of something else.

    Nothing is compared that either side does not know, nor anything with ``overwrite``.
    """
    if config.overwrite or folders.is_empty(config.output):
        return
    theirs = folder.read_provenance(config.output).get(IDENTITY, {})
    for what in sorted(theirs.keys() & ours.keys()):
        if theirs[what] != ours[what]:
            raise UserError(
                f"the {what} of {config.output} changed ({_short(theirs[what])}, now {_short(ours[what])}): "
                f"restore what it was, or {folders.advice(config.output, folder.inputs(config))}"
            )


def _hash(rows: Sequence[Example]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        conversation = (row.messages, row.tools) if row.messages else ()
        digest.update(
            repr((row.document, row.reference, *conversation, *row.reference_ids)).encode(
                "utf-8", "backslashreplace"
            )
        )
    return digest.hexdigest()


def _short(identity: str) -> str:
    return " ".join(word[:SHORT] for word in identity.split())
