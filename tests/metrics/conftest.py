"""Hand-made traces and records."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from specalign.records import GenerationRecord, StepTrace


@pytest.fixture(scope="session")
def trace() -> Callable[..., StepTrace]:
    """trace((drafted, examined, accepted, emitted), ..., draft=, verify=, rest=) with seconds a step."""

    def make(
        *steps: tuple[int, int, int, int], draft: float = 0.1, verify: float = 1.0, rest: float = 0.01
    ) -> StepTrace:
        columns = [list(column) for column in zip(*steps, strict=True)] or [[], [], [], []]
        return StepTrace(
            n_drafted=columns[0],
            n_examined=columns[1],
            n_accepted=columns[2],
            n_emitted=columns[3],
            overlap=[[0.5] * examined for examined in columns[1]],
            draft_s=[draft * drafted for drafted in columns[0]],
            verify_s=[verify] * len(steps),
            rest_s=[rest] * len(steps),
        )

    return make


@pytest.fixture(scope="session")
def record() -> Callable[..., GenerationRecord]:
    """record(method, prompt, token_ids, steps, **fields); its seconds are those of the steps plus 1 of prefill."""

    def make(
        method: str, prompt: str, token_ids: Sequence[int], steps: StepTrace | None = None, **fields: Any
    ) -> GenerationRecord:
        decode_s = sum(map(sum, (steps.draft_s, steps.verify_s, steps.rest_s))) if steps else 0.0
        plain = method == "target"
        settings: dict[str, Any] = {
            "category": "",
            "repeat": 0,
            "order": 0,
            "temperature": 0.0,
            "top_k": 0,
            "top_p": 1.0,
            "gamma": 0 if plain else 3,
            "rule": "none" if plain else "greedy",
            "lossless": True,
            "seed": 0,
            "n_prompt_tokens": 5,
            "status": "ok",
            "prefill_s": 1.0,
            "decode_s": decode_s,
            "wall_s": 1.0 + decode_s,
        }
        return GenerationRecord(
            method=method, prompt_id=prompt, token_ids=list(token_ids), steps=steps, **settings | fields
        )

    return make
