"""What a few rows tell of a data set: columns, references, prompt, and the licence where one is given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from specalign.data.bad_rows import listed
from specalign.data.examples import Columns, Split
from specalign.data.prompts import Prompt
from specalign.data.sources import HUB, HubSet, Reading, has_splits, hub_set, read_examples, split_note
from specalign.data.turns import DATE, Template, adds_end, writes_date
from specalign.errors import UserError
from specalign.names import is_folder, is_local, require_file
from specalign.preflight import Caution

ROWS = 32
"""Rows that are looked at."""


def first_rows(source: str, split: Split, columns: Columns, *, skip_bad_rows: bool) -> Reading:
    """A few examples of a split, and the bad rows among them."""
    return read_examples(source, split, columns=columns, limit=ROWS, skip_bad_rows=skip_bad_rows)


def describe_rows(found: Reading, *, references: bool) -> str | Caution:
    """How many have references; with ``references``, raises UserError where none has."""
    n = sum(bool(example.reference) for example in found.examples)
    if references and not n:
        raise UserError(
            "the data has no references, which the method needs; name their column: --data.reference"
        )
    told = f"the first {len(found.examples)} are read; {n} have a reference"
    return Caution(f"{told}; left out {listed(found.bad)}") if found.bad else told


def describe_splits(source: str) -> str | Caution:
    """Whether the data come in splits."""
    return "its own" if has_splits(source) else Caution(split_note(source))


def describe_prompts(
    prompts: Sequence[Prompt],
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    *,
    keep_end: bool = False,
) -> str | Caution:
    """Which template they have, how long they are, and how many are cut to fit."""
    chat = template == "chat" or (template == "auto" and tokenizer.chat_template)
    kind = "the tokenizer's chat template" if chat else "plain text"
    if chat and writes_date(tokenizer):
        kind += f" (with the date of {DATE}, on every day)"
    longest = max(len(prompt.input_ids) for prompt in prompts)
    n_cut = sum(prompt.n_truncated > 0 for prompt in prompts)
    found = f"{kind}, up to {longest} tokens; {n_cut} of {len(prompts)} are cut to fit"
    if n_turns := sum(prompt.n_cut_turns for prompt in prompts):
        found += f", conversations by {n_turns} oldest turns"
    if n_later := sum(len(prompt.later) for prompt in prompts):
        found += f"; {n_later} later turns"
    if n_left_out := sum(prompt.n_left_out for prompt in prompts):
        found += f"; {n_left_out} later turns are left out: max_prompt_tokens decides"
    if n_spans := sum(len(prompt.spans) for prompt in prompts):
        found += f"; {n_spans} earlier answers are trained on too"
    if n_apart := sum(bool(prompt.conversation) for prompt in prompts):
        found += f"; {apart_note(n_apart)}"
    if not chat and template == "auto":
        found += "; a base model may want --data.prompt tldr or question, T5 summarize or translate"
    if n_cut:
        found += ": max_prompt_tokens decides"
    left_off = not chat and not keep_end and adds_end(tokenizer)
    if left_off:
        found += f"; the tokenizer's end of texts ({tokenizer.eos_token}) is left off, since a prompt goes on"
    return Caution(found) if n_cut or n_left_out or left_off else found


def apart_note(n_prompts: int) -> str:
    """What is said of conversations whose answers have prompts of their own."""
    return (
        f"{n_prompts} answers have prompts of their own, since the chat template rewrites earlier answers when a "
        "conversation goes on"
    )


def licence(source: str) -> str | Caution:
    """What is known of the data's licence, without downloading the data."""
    if source.startswith("builtin:"):
        return "PSF-2.0: Python's own source files"
    if source.startswith("spec_bench:"):
        return "Apache-2.0 (Spec-Bench); its rows come from data sets with licences of their own"
    if source in HUB:
        return _as_its_card_says(HUB[source])
    path = Path(source)
    if is_local(source):
        if not is_folder(source):
            require_file(path)
        folder = path if path.is_dir() else path.parent
        beside = sorted(found.name for found in folder.iterdir() if found.name.upper().startswith("LICEN"))
        return (
            f"see {beside[0]} beside the data"
            if beside
            else Caution("none beside the data: is its use allowed?")
        )
    return _as_its_card_says(hub_set(source))


def _as_its_card_says(known: HubSet) -> str | Caution:
    stated = known.licence or _card_licence(known.name)
    if stated in ("", "unknown"):
        return Caution(f"not stated on its card: https://huggingface.co/datasets/{known.name}")
    return f"{stated}, by its card: https://huggingface.co/datasets/{known.name}"


def _card_licence(name: str) -> str:
    """The licence field of a data set's card on the hub; empty where it has none or cannot be reached."""
    from huggingface_hub import dataset_info
    from huggingface_hub.errors import HfHubHTTPError

    try:
        card = dataset_info(name, timeout=10).card_data
    except (HfHubHTTPError, OSError):
        return ""
    found = getattr(card, "license", None) or ""
    return ", ".join(found) if isinstance(found, list) else str(found)
