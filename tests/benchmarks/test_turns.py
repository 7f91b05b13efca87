"""Conversations are decoded turn by turn, every method's own answers before its later ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from specalign.benchmarks import runner, suite
from specalign.benchmarks.cli import main, parse_run
from specalign.data.dialogue import Dialogue
from specalign.data.turns import turns_of
from specalign.records import GenerationRecord
from specalign.run_files import RECORDS_FILE, read_records, read_result
from tests.conftest import WORDS

Bench = Callable[..., list[str]]
TEMPLATE = (
    "{% for m in messages %}{{ 'w10' if m['role'] == 'user' else 'w11' }} {{ m['content'] }} "
    "{% if m['role'] == 'assistant' %}</s> {% endif %}{% endfor %}{% if add_generation_prompt %}w11 {% endif %}"
)
SHORT = ["--decoding.max-new-tokens", "6", "--data.prompt", "document", "--include"]


@pytest.fixture
def talk(bench: Bench, models_folder: Path, tmp_path: Path) -> Bench:
    """bench over three conversations of one to three turns, whose models have a chat template."""
    chatty = tmp_path / "chatty"
    AutoModelForCausalLM.from_pretrained(models_folder / "target").save_pretrained(chatty)
    tokenizer = AutoTokenizer.from_pretrained(models_folder / "target")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(chatty)
    rows: list[dict[str, Any]] = [{"turns": WORDS[3 * n : 3 * n + 1 + n], "id": n} for n in range(3)]
    data = tmp_path / "talks.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def words(*flags: str, drafters: tuple[str, ...] = ("copy", "small")) -> list[str]:
        own = ["--target.model", str(chatty), "--data.source", str(data), *SHORT]
        return bench(*own, *flags, drafters=drafters)

    return words


def measure(words: list[str]) -> None:
    runner.run(parse_run(words[1:]))


def records_of(run: Path) -> list[GenerationRecord]:
    return list(read_records(run / RECORDS_FILE))


def test_each_turn_has_the_methods_own_answers_before_it(talk: Bench, tmp_path: Path) -> None:
    main(talk())
    run = tmp_path / "run"
    result, records = read_result(run), records_of(run)
    assert result.provenance["n_turns"] == [1, 2, 3]
    assert len(records) == result.n_requested == result.n_effective == 6 * 3 * 2
    assert [record.order for record in records] == list(range(len(records)))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "chatty")
    writing = turns_of(tokenizer, "chat")
    said: dict[tuple[str, str, float], list[dict[str, str]]] = {}
    for record in records:
        messages = said.setdefault((record.prompt_id, record.method, record.temperature), [])
        assert len(messages) == 2 * record.turn, "the turns of a conversation follow each other"
        number = int(record.prompt_id)
        messages.append({"role": "user", "content": WORDS[3 * number + record.turn]})
        assert record.n_prompt_tokens == len(Dialogue(tuple(messages)).ids(writing))
        messages.append({"role": "assistant", "content": record.text})
    main(["verify", str(run)])


def test_greedy_turns_are_the_same_and_every_prompt_counts_once(talk: Bench, tmp_path: Path) -> None:
    measure(talk("--decoding.temperatures", "0"))
    result, records = read_result(tmp_path / "run"), records_of(tmp_path / "run")
    outputs = {
        method: {(r.prompt_id, r.turn): r.token_ids for r in records if r.method == method}
        for method in ("target", "copy", "small")
    }
    assert outputs["copy"] == outputs["target"] == outputs["small"]
    assert {check.name: check.passed for check in result.checks}["lossless"]
    target = next(row for row in result.rows if row.method == "target")
    own = [record for record in records if record.method == "target"]
    n_tokens, seconds = sum(len(r.token_ids) for r in own), sum(r.wall_s for r in own)
    assert target.tokens_per_s.value == pytest.approx(n_tokens / seconds)
    # three prompts, not six: the interval has two degrees of freedom
    from specalign.metrics.statistics import ratio_interval

    prompts = ("0", "1", "2")
    tokens_ = [sum(len(r.token_ids) for r in own if r.prompt_id == name) for name in prompts]
    times = [sum(r.wall_s for r in own if r.prompt_id == name) for name in prompts]
    assert target.tokens_per_s == ratio_interval(tokens_, times)


def test_an_interrupted_conversation_goes_on_where_it_was(talk: Bench, tmp_path: Path) -> None:
    words = talk("--decoding.temperatures", "0", drafters=("small",))
    measure(words)
    run = tmp_path / "run"
    whole = records_of(run)
    from dataclasses import replace

    from specalign.run_files import write_result

    place = next(n for n, record in enumerate(whole) if record.turn == 1)  # its first turn is there
    lines = (run / RECORDS_FILE).read_text().splitlines(keepends=True)
    (run / RECORDS_FILE).write_text("".join(lines[:place]))
    write_result(run, replace(read_result(run), status="interrupted", records_sha256="", probes_sha256=""))
    measure(words)
    again = records_of(run)
    assert [r.token_ids for r in again] == [r.token_ids for r in whole]
    assert [r.n_prompt_tokens for r in again] == [r.n_prompt_tokens for r in whole]


def test_turns_after_a_failed_one_fail_too_and_the_conversation_enters_no_speed(
    talk: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = runner.generate

    def broken(stepper: Any, drafter: Any, input_ids: Any, **options: Any) -> Any:
        if drafter and len(input_ids) > 10 and options["max_new_tokens"] == 6:
            raise RuntimeError("out of memory")
        return real(stepper, drafter, input_ids, **options)

    monkeypatch.setattr(runner, "generate", broken)
    measure(talk("--decoding.temperatures", "0", drafters=("small",)))
    records = records_of(tmp_path / "run")
    failed = {(r.prompt_id, r.turn): r.error for r in records if r.status == "failed"}
    assert failed[("2", 1)] == "RuntimeError: out of memory"
    assert failed[("2", 2)] == "ValueError: turn 2 of its conversation failed"
    from specalign.analysis.speeds import speeds_of

    speeds = speeds_of(records)
    whole = {r.prompt_id for r in records} - {name for name, _ in failed}
    assert speeds.prompts(("small", 0.0, 3), ("target", 0.0, 0)) == sorted(whole)


@pytest.mark.parametrize(("turns", "n"), [("first", 3), ("all", 6)])
def test_turns_are_chosen(talk: Bench, tmp_path: Path, turns: str, n: int) -> None:
    measure(talk("--decoding.temperatures", "0", "--data.turns", turns, drafters=("small",)))
    assert len(records_of(tmp_path / "run")) == 2 * n


def test_turns_without_room_are_left_out_and_said(
    talk: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measure(talk("--decoding.temperatures", "0", "--data.max-prompt-tokens", "8", drafters=("small",)))
    result = read_result(tmp_path / "run")
    assert result.provenance["n_turns"] == [1, 2, 2]
    assert result.provenance["n_left_out_turns"] == 1
    assert "0 oldest turns (0 tokens) and 1 last ones of 3 prompts" in capsys.readouterr().out


def test_a_run_of_before_a_field_is_gone_on_with(talk: Bench, tmp_path: Path) -> None:
    words = talk("--decoding.temperatures", "0", drafters=("small",))
    measure(words)
    path = tmp_path / "run" / "result.json"
    table = json.loads(path.read_text())
    del table["config"]["data"]["messages"]
    path.write_text(json.dumps(table))
    measure(words)


@pytest.mark.parametrize(
    ("prompt", "opened"), [([1, 8], True), ([1, 8, 1, 9, 1], False), ([1], False), ([8, 9, 1, 8], True)]
)
def test_whether_prompts_open_the_thinking_is_known(prompt: list[int], opened: bool) -> None:
    found: Any = SimpleNamespace(
        tokenizer=SimpleNamespace(get_added_vocab=lambda: {"<think>": 8, "</think>": 9}),
        prompts=[SimpleNamespace(input_ids=tuple(prompt))],
    )
    assert suite._thinking(found) == {"begin": 8, "end": 9, "opened": opened}
    found.tokenizer = SimpleNamespace(get_added_vocab=lambda: {"<think>": 8})
    assert suite._thinking(found) == {}
