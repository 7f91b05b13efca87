"""Every answer of a conversation is trained on where asked for, the teacher's each after its own earlier ones."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from specalign.data import Prompt
from specalign.data.dialogue import Dialogue
from specalign.data.turns import Turns
from specalign.decoding import generate
from specalign.errors import UserError
from specalign.training import loop, setup
from specalign.training.config import TrainConfig
from specalign.training.conversations import Limits, told
from specalign.training.materials import data_facts, load_materials
from specalign.training.rollouts import Tokens
from tests.data.chat_templates import tokenizer_of
from tests.training.conftest import WORDS

Tiny = Callable[..., TrainConfig]
TEMPLATE = (
    "{% if shout %}w9 {% endif %}"
    "{% for m in messages %}{{ 'w10' if m['role'] == 'user' else 'w11' }} {{ m['content'] }} "
    "{% if m['role'] == 'assistant' %}</s> w12 {% endif %}{% endfor %}{% if add_generation_prompt %}w11 {% endif %}"
)
"""w10 question w11 answer </s> w12 w10 question w11"""
REWRITES = TEMPLATE.replace("'w11' }} {{", "('w11' if loop.last else 'w14') }} {{")
"""Earlier answers begin with w14."""
PLAIN = Turns(tokenizer_of(None), chat=False)
W11 = 3 + 11
"""The id after which the model goes on; no other text has it."""


def test_each_answer_is_written_after_the_writers_own_earlier_ones() -> None:
    asked: list[list[Tokens]] = []

    def write(prompts: Sequence[Prompt]) -> dict[str, Tokens]:
        asked.append([prompt.input_ids for prompt in prompts])
        ends = {"cut": (90, 91)}
        return {prompt.id: ends.get(prompt.id, (80 + len(prompt.spans), 2)) for prompt in prompts}

    #        q  q  a  a  end  q  a  end  q
    whole = (1, 5, 6, 7, 2, 1, 8, 2, 1)
    prompts = [
        Prompt("two", whole, (), spans=((2, 5), (6, 8))),
        Prompt("none", (1, 1), ()),
        Prompt("cut", whole, (), spans=((2, 5),)),
    ]
    found = told(prompts, write, Limits({2}, 99), PLAIN)
    assert asked == [
        [(1, 5), (1, 1), (1, 5)],
        [(1, 5, 80, 2, 1), (1, 5, 90, 91, 2, 1, 8, 2, 1)],
        [(1, 5, 80, 2, 1, 81, 2, 1)],
    ]
    assert found.responses == {"none": (80, 2), "cut": (90, 91), "two": (82, 2)}
    assert found.prompts["two"].spans == ((2, 4), (5, 7))
    assert found.prompts["cut"].spans == ((2, 4),)  # the end that closes it is not the teacher's
    assert found.prompts["none"].input_ids == (1, 1)
    assert found.n_shortened == 0


def test_a_conversation_that_outgrows_its_prompt_ends_with_the_answer_before() -> None:
    long = Prompt("1", (1, 5, 6, 2, 1, 8, 2, 1), (), spans=((2, 4), (5, 7)))
    found = told([long], lambda prompts: {"1": (7, 7, 7, 2)}, Limits({2}, 8), PLAIN)
    assert found.prompts["1"].input_ids == (1, 5, 7, 7, 7, 2, 1)
    assert found.responses == {"1": (7, 7, 7, 2)}
    assert found.n_shortened == 1


@pytest.fixture
def chatty(teacher_folder: Path, tmp_path: Path) -> Path:
    """The teacher with a chat template."""
    folder = tmp_path / "chatty"
    AutoModelForCausalLM.from_pretrained(teacher_folder).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(teacher_folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def talks(tmp_path: Path) -> Path:
    """Conversations of one to three answers, under two names."""
    folder = tmp_path / "talks"
    folder.mkdir()
    for split, numbers in (("train", range(8)), ("validation", range(8, 12))):
        rows = []
        for i in numbers:
            said = [
                {
                    "role": ("user", "assistant")[turn % 2],
                    "content": " ".join(WORDS[20 + (i * 3 + turn) % 40 :][:2]),
                }
                for turn in range(2 + 2 * (i % 3))
            ]
            rows.append({"messages": said, "talk": said[:1] + said[-1:]})
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def chat(tiny: Tiny, chatty: Path, talks: Path) -> Tiny:
    """tiny over conversations."""

    def make(method: str, **data: Any) -> TrainConfig:
        base = {"source": str(talks), "prompt": "{document}", "max_prompt_tokens": 40}
        return tiny(method, teacher={"model": str(chatty)}, data=base | data)

    return make


def after_a_step(config: TrainConfig) -> list[Any]:
    run = setup.start_run(config, load_materials(config))
    report = loop.step(run)
    return [report.loss, report.n_tokens, run.validation.score(run.pair)]


def test_each_option_says_what_is_trained_on(chat: Tiny) -> None:
    base = after_a_step(chat("sft"))
    assert after_a_step(chat("sft")) == base
    for option in ({"turns": "all"}, {"messages": "talk"}, {"template_arguments": {"shout": True}}):
        assert after_a_step(chat("sft", **option)) != base


@pytest.mark.parametrize("method", ["sft", "seqkd", "distillspec", "gkd"])
def test_the_budget_counts_what_enters_the_loss(chat: Tiny, method: str) -> None:
    config = chat(method, turns="all")
    run = setup.start_run(config, load_materials(config))
    rows = run.policy.rows(run.prompts, loop.writer(run), torch.Generator().manual_seed(0))
    _, n_tokens, scored = loop.accumulate(run, rows, torch.Generator())
    assert n_tokens == sum(row.n_tokens for row in rows) == sum(layout.n_tokens for layout, _ in scored)
    fixed = [row for row in rows if not row.on_policy]
    assert any(row.spans for row in fixed) or method == "gkd"
    for row in fixed:
        n_answers = row.trunk[: row.n_prompt].count(W11)
        assert len(row.scored) == n_answers


def test_the_datas_answers_enter_the_loss_and_nothing_else(chat: Tiny, talks: Path) -> None:
    config = chat("sft", turns="all", max_response_tokens=2)
    materials = load_materials(config)
    _, policy = setup.usable_data(config, materials)
    writer: Any = type("Nobody", (), {"model": materials.teacher})()
    rows = policy.rows(materials.train, writer, torch.Generator())
    said = [json.loads(line)["messages"] for line in (talks / "train.jsonl").read_text().splitlines()]
    for row, messages in zip(rows, said, strict=True):
        answers = [message["content"] for message in messages if message["role"] == "assistant"]
        # an answer is cut to two tokens, but all of it stands before the next question
        assert [materials.tokenizer.decode(list(branch.tokens)) for branch in row.scored] == answers
        whole = materials.tokenizer.apply_chat_template(messages, return_dict=False)
        assert row.trunk == tuple(whole)[: len(row.trunk)]
        assert len(row.trunk) == len(whole) - 2


def test_the_teachers_answers_are_its_own_greedy_ones(chat: Tiny) -> None:
    materials = load_materials(chat("seqkd", turns="all"))
    found = materials.told("train")
    assert {len(prompt.spans) for prompt in found.values()} == {0, 1, 2}
    for prompt in found.values():
        places = [*prompt.spans, (len(prompt.input_ids), None)]
        whole = prompt.input_ids + materials.responses("train")[prompt.id]
        for begin, end in places:
            alone = generate(materials.teacher, None, list(whole[:begin]), max_new_tokens=6).token_ids[0]
            assert tuple(alone) == whole[begin:end]


def test_validation_scores_every_answer_and_counts_a_conversation_once(chat: Tiny) -> None:
    config = chat("seqkd", turns="all")
    run = setup.start_run(config, load_materials(config))
    materials = load_materials(config)
    responses = materials.responses("validation")
    spans = {id_: prompt.spans for id_, prompt in materials.told("validation").items()}
    lines = run.validation.by_prompt(run.pair)
    assert [line["prompt_id"] for line in lines] == list(responses)
    for line in lines:
        id_ = line["prompt_id"]
        assert line["n_positions"] == len(responses[id_]) + sum(end - begin for begin, end in spans[id_])
    assert run.validation.score(run.pair).n_positions == sum(line["n_positions"] for line in lines)


@pytest.fixture
def rewriting(chat: Tiny, chatty: Path) -> Tiny:
    """chat with a template that rewrites earlier answers."""
    tokenizer = AutoTokenizer.from_pretrained(chatty)
    tokenizer.chat_template = REWRITES
    tokenizer.save_pretrained(chatty)
    return chat


def test_the_teacher_sees_its_own_earlier_answers_as_the_template_rewrites_them(rewriting: Tiny) -> None:
    materials = load_materials(rewriting("seqkd", turns="all", max_prompt_tokens=99))
    tokenizer, said = materials.tokenizer, materials.responses("train")
    assert len(materials.train) == 15  # of 8 conversations
    asked = materials.told("train")
    for prompt in materials.train:
        turns = [each for each in materials.train if each.row_id == prompt.row_id]
        before = [said[each.id] for each in turns[: turns.index(prompt)]]
        if prompt.dialogue is None:  # of one answer
            continue
        users = [message for message in prompt.dialogue.messages if message["role"] == "user"]
        own = [
            {"role": "assistant", "content": str(tokenizer.decode(list(answer), skip_special_tokens=True))}
            for answer in before
        ]
        turns_of_both = zip(own, users[1:], strict=True)
        messages = [dict(users[0]), *(dict(each) for pair in turns_of_both for each in pair)]
        rendered = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert asked[prompt.id].input_ids == tuple(rendered)
        alone = generate(materials.teacher, None, list(rendered), max_new_tokens=6).token_ids[0]
        assert said[prompt.id] == tuple(alone)


@pytest.mark.parametrize("method", ["sft", "seqkd", "distillspec", "gkd"])
def test_every_turn_of_a_rewriting_template_is_a_row_that_ends_with_its_answer(
    rewriting: Tiny, method: str
) -> None:
    config = rewriting(method, turns="all")
    run = setup.start_run(config, load_materials(config))
    rows = run.policy.rows(run.prompts, loop.writer(run), torch.Generator().manual_seed(0))
    assert len(rows) == len(run.prompts) == 15
    for row in rows:
        assert row.trunk[: row.n_prompt].count(W11) == 1  # earlier answers begin otherwise
        assert all(branch.start >= row.n_prompt for branch in row.scored)


def test_turns_with_prompts_of_their_own_count_as_one_conversation(
    rewriting: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    config = rewriting("seqkd", turns="all")
    materials = load_materials(config)
    run = setup.start_run(config, materials)
    lines = run.validation.by_prompt(run.pair)
    said = materials.responses("validation")
    assert [line["prompt_id"] for line in lines] == list(
        dict.fromkeys(each.row_id for each in materials.validation)
    )
    assert len(said) > len(lines)
    for line in lines:
        own = [said[each.id] for each in materials.validation if each.row_id == line["prompt_id"]]
        assert line["n_positions"] == sum(map(len, own))
    assert data_facts(materials)["n_turn_prompts"] == sum(
        bool(each.conversation) for each in [*materials.train, *materials.validation]
    )
    assert "answers have prompts of their own" in capsys.readouterr().out


def test_a_turn_that_a_rewritten_conversation_does_not_come_to_has_no_answer() -> None:
    turns = Turns(tokenizer_of(None), chat=False)
    asked = ({"role": "user", "content": "a"},)
    later = (*asked, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c" * 30})
    rows = [
        Prompt("1/1", (1, 2), (), conversation="1", dialogue=Dialogue(asked)),
        Prompt("1/2", (1, 2, 3), (), conversation="1", dialogue=Dialogue(later)),
        Prompt("2", (1,), ()),
    ]
    found = told(rows, lambda prompts: {each.id: (5,) for each in prompts}, Limits({2}, 12), turns)
    assert found.responses == {"1/1": (5,), "1/2": (), "2": (5,)}
    assert found.n_shortened == 1


def test_cut_turns_are_counted_and_said(chat: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    materials = load_materials(chat("sft", max_prompt_tokens=12))
    facts = data_facts(materials)
    assert (
        facts["n_cut_turns"]
        == sum(prompt.n_cut_turns for prompt in [*materials.train, *materials.validation])
        > 0
    )
    assert f"{facts['n_cut_turns']} oldest turns of conversations" in capsys.readouterr().out


def test_an_encoder_reads_a_conversation_for_its_last_answer_alone(
    chat: Tiny, tmp_path: Path, chatty: Path
) -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    sizes: dict[str, Any] = {
        "vocab_size": 64,
        "d_model": 16,
        "d_kv": 8,
        "d_ff": 24,
        "num_layers": 2,
        "num_heads": 2,
    }
    folder = tmp_path / "t5"
    T5ForConditionalGeneration(T5Config(**sizes | {"decoder_start_token_id": 0})).save_pretrained(folder)
    AutoTokenizer.from_pretrained(chatty).save_pretrained(folder)
    config = chat("sft")
    config = replace(config, teacher=replace(config.teacher, model=str(folder)))
    assert load_materials(config).train
    with pytest.raises(UserError, match="without an encoder"):
        load_materials(replace(config, data=replace(config.data, turns="all")))
