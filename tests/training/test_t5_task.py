"""A T5 that really knows something: it learns to sort, and a slice of it becomes a good drafter for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration

from specalign.benchmarks.cli import parse_run
from specalign.benchmarks.runner import run
from specalign.results import SummaryRow
from specalign.training.config import TrainConfig
from specalign.training.session import train_all

pytestmark = pytest.mark.slow
LENGTH, FIRST, END = 8, 3, 2
"""Words of a sequence; the first word's id and the end's, in the tiny tokenizer."""
STEPS = 500


def task(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Random words, and the same in the order of their ids with an end behind them."""
    ids = torch.randint(FIRST, FIRST + 60, (n, LENGTH), generator=torch.Generator().manual_seed(seed))
    return ids, torch.cat([ids.sort(-1).values, torch.full((n, 1), END)], -1)


def learned() -> T5ForConditionalGeneration:
    """A teacher trained from scratch in under a minute."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 64, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_heads": 4}
    sizes |= {"num_layers": 2, "num_decoder_layers": 4, "dropout_rate": 0.0}
    sizes |= {"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": END}
    model = T5ForConditionalGeneration(T5Config(**sizes))
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=STEPS, pct_start=0.1)
    for step in range(STEPS):
        inputs, labels = task(64, step)
        model(input_ids=inputs, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()
    return model.eval()


def write_data(folder: Path, words: Any) -> None:
    for name, n, seed in (("train", 256, 10_000), ("validation", 16, 20_000), ("test", 8, 30_000)):
        inputs, labels = task(n, seed)
        rows = [
            {"document": words.decode(ours), "reference": words.decode(theirs[:-1])}
            for ours, theirs in zip(inputs.tolist(), labels.tolist(), strict=True)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_slice_of_a_t5_that_sorts_becomes_a_drafter(
    tiny: Callable[..., TrainConfig], teacher_folder: Path, tmp_path: Path
) -> None:
    teacher, words = learned(), AutoTokenizer.from_pretrained(teacher_folder)
    inputs, labels = task(256, 40_000)
    with torch.no_grad():
        right = teacher(input_ids=inputs, labels=labels).logits.argmax(-1) == labels
    assert right.float().mean() > 0.95, "the teacher has learned the task"
    folder = tmp_path / "teacher"
    teacher.save_pretrained(folder)
    words.save_pretrained(folder)
    data = tmp_path / "sorting"
    data.mkdir()
    write_data(data, words)

    def trained(method: str) -> Path:
        config = tiny(
            method,
            output=tmp_path / method,
            teacher={"model": str(folder)},
            student={"n_layers": 2, "align_tokens": 2000},
            data={"source": str(data), "prompt": "document", "max_response_tokens": LENGTH + 1},
            rollout={"style": "full", "batch": 32},
            optimiser={"batch": 32, "accumulation": 1, "lr": 2e-3},
            logging={"every": 50, "validate_every": 0, "checkpoint_every": 0},
            **({} if method in ("untrained", "aligned") else {"budget": {"steps": 150}}),
        )
        train_all([config])
        return config.output

    methods = ("untrained", "aligned", "distillspec")
    drafters = [f"{method}={trained(method)}" for method in methods]
    words_of_run = f"--target.model {folder} --data {data} --output {tmp_path / 'bench'} --device cpu".split()
    words_of_run += f"--data.prompt document --decoding.max-new-tokens {LENGTH + 1} --limit 8 --include".split()
    result = run(parse_run(["--drafter", *drafters, *words_of_run]))
    assert {check.name: check.passed for check in result.checks}["lossless"]
    found = {
        row.method: accepted(row) for row in result.rows if row.temperature == 1 and row.method != "target"
    }
    assert found["untrained"] < found["aligned"] - 0.2, found
    assert found["untrained"] < found["distillspec"] - 0.2, found
    assert 0.6 < found["distillspec"] < 0.9999, found


def accepted(row: SummaryRow) -> float:
    assert row.alpha_expected is not None
    return row.alpha_expected.value
