"""What a reader of a run has of its inputs: the target's tokenizer and the data, where they lie on this machine."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from specalign.analysis.audit import AtHand
from specalign.errors import UserError
from specalign.results import BenchmarkResult
from specalign.run_files import RECORDS_FILE, read_records, read_result


def at_hand(folder: Path) -> AtHand:
    """Tokenizer and references of a run; nothing is downloaded, and no code of a model's repository runs."""
    result = read_result(folder)
    os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported, which this command has not done
    from transformers.utils import logging

    logging.set_verbosity_error()
    tokenizer = _tokenizer(result)
    if tokenizer is None:
        return AtHand()

    def decode(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=True)).strip()

    return AtHand(decode, _references(result, folder, tokenizer))


def _tokenizer(result: BenchmarkResult) -> Any:
    from specalign.models.load import load_tokenizer

    with suppress(UserError, OSError, ValueError):
        return load_tokenizer(result.target.source)
    return None


def _references(result: BenchmarkResult, folder: Path, tokenizer: Any) -> dict[tuple[str, int], str] | None:
    """Of the data that the config names, where they give the run's prompts: the same ids, and lengths unless cut."""
    from specalign.benchmarks.config import BenchConfig
    from specalign.benchmarks.suite import load_prompts
    from specalign.config import from_table

    source = str(result.config.get("data", {}).get("source", ""))
    if not (source.startswith("builtin:") or Path(source.removeprefix("spec_bench:")).exists()):
        return None
    with suppress(UserError, OSError, ValueError):
        config = from_table(BenchConfig, {"data": result.config["data"]}, "the run's config")
        prompts = load_prompts(config, tokenizer)
        asked = {
            record.prompt_id: record.n_prompt_tokens
            for record in read_records(folder / RECORDS_FILE)
            if not record.turn
        }
        whole = [prompt for prompt in prompts if not prompt.n_truncated]
        same = all(asked.get(prompt.id) == len(prompt.input_ids) for prompt in whole)
        if whole and same and asked.keys() == {prompt.id for prompt in prompts}:
            return {
                (prompt.id, turn): reference
                for prompt in prompts
                for turn, reference in enumerate([prompt.reference, *(each.reference for each in prompt.later)])
            }
    return None
