"""Rows that are token ids already: ``input_ids``, the whole prompt, and ``reference_ids`` where there is a response.

They belong to one tokenizer: no template, no instruction and no cutting is for them.
"""

from __future__ import annotations

from collections.abc import Mapping

from specalign.data.examples import Example, RowError

IDS, REFERENCE_IDS = "input_ids", "reference_ids"


def example_from_ids(row: Mapping[str, object], default_id: str) -> Example:
    """One example from one row; raises RowError. Its document, which tells rows apart, are the ids in words."""
    ids = _ids(row, IDS)
    if not ids:
        raise RowError(f"column {IDS!r} is empty")
    reference, category, id_ = row.get("reference"), row.get("category"), row.get("id")
    return Example(
        default_id if id_ is None else str(id_),
        " ".join(map(str, ids)),
        reference if isinstance(reference, str) else "",
        category if isinstance(category, str) else "",
        input_ids=ids,
        reference_ids=_ids(row, REFERENCE_IDS),
    )


def require_ids(example: Example, n_ids: int, limit: int) -> None:
    """Raise RowError for ids that the tokenizer has not, and for more than ``limit`` of a prompt."""
    strange = [id_ for id_ in (*example.input_ids, *example.reference_ids) if not 0 <= id_ < n_ids]
    if strange:
        raise RowError(f"token id {strange[0]} is none of the tokenizer's {n_ids}")
    if len(example.input_ids) > limit:
        raise RowError(
            f"has {len(example.input_ids)} tokens, more than max_prompt_tokens = {limit}, and token ids are never cut"
        )


def _ids(row: Mapping[str, object], column: str) -> tuple[int, ...]:
    found = row.get(column)
    if found is None:
        return ()
    items = found.tolist() if hasattr(found, "tolist") else found
    if not isinstance(items, list | tuple) or not all(type(id_) is int for id_ in items):
        raise RowError(f"column {column!r} is no list of token ids")
    return tuple(items)
