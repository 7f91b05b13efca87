"""Conversations in which the teacher has given every answer itself."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from specalign.data import Prompt
from specalign.data.dialogue import fitted
from specalign.data.examples import RowError
from specalign.data.in_turn import continued
from specalign.data.turns import Turns
from specalign.training.rollouts import Tokens

Write = Callable[[Sequence[Prompt]], dict[str, Tokens]]
"""The last answer to each prompt, by prompt id."""


@dataclass(frozen=True)
class Told:
    """What a writer made of some prompts, by prompt id, in their order."""

    prompts: dict[str, Prompt]
    """With its own earlier answers in place of the data's; their spans end where it ended, or was cut off."""
    responses: dict[str, Tokens]
    """Its last answers; empty for prompts that a conversation did not come to."""
    n_shortened: int
    """Conversations that end early, since with its answers the next prompt would be longer than it may be."""


@dataclass(frozen=True)
class Limits:
    """Where answers end, and how long a prompt may be."""

    ends: Collection[int]
    max_prompt_tokens: int


def told(prompts: Sequence[Prompt], write: Write, limits: Limits, turns: Turns) -> Told:
    """Let ``write`` give each answer of each prompt in order, seeing its own earlier ones.

    In a prompt with spans, what stands between two answers is the data's, token by token; an answer that was cut off is
    closed by the token that ends the data's. Where each answer has a prompt of its own, the template writes it anew,
    with ``turns``; it then loses its oldest turns where it is too long. A conversation ends with the answer after which
    the next prompt would exceed the limit all the same.
    """
    found = {prompt.id: prompt for prompt in prompts}
    last: dict[str, Tokens] = dict.fromkeys(found, ())
    following = {
        before.id: after
        for before, after in pairwise(prompts)
        if before.conversation and before.conversation == after.conversation
    }
    later = {prompt.id for prompt in following.values()}
    growing = [_begun(prompt) for prompt in prompts if prompt.id not in later]
    whole = dict(found)
    n_shortened = 0
    while growing:
        answers = write(growing)
        going_on = []
        for prompt in growing:
            answer = answers[prompt.id]
            found[prompt.id], last[prompt.id] = prompt, answer
            if after := following.get(prompt.id):
                longer = _asked_next(prompt, answer, after, limits, turns)
            elif len(prompt.spans) < len(whole[prompt.id].spans):
                longer = _grown(prompt, answer, whole[prompt.id], limits)
            else:
                continue
            if longer is None:
                n_shortened += 1
            else:
                going_on.append(longer)
        growing = going_on
    return Told(found, last, n_shortened)


def _begun(prompt: Prompt) -> Prompt:
    """Up to the first answer that is trained on."""
    first = prompt.spans[0][0] if prompt.spans else len(prompt.input_ids)
    return replace(prompt, input_ids=prompt.input_ids[:first], spans=())


def _grown(asked: Prompt, answer: Tokens, whole: Prompt, limits: Limits) -> Prompt | None:
    """Up to the next answer; None where that is too long."""
    turn = len(asked.spans)
    _, end = whole.spans[turn]
    following = whole.spans[turn + 1][0] if turn + 1 < len(whole.spans) else len(whole.input_ids)
    closing = whole.input_ids[end - 1 : end]
    closed = bool(answer) and answer[-1] in limits.ends
    between = (*(() if closed or closing[0] not in limits.ends else closing), *whole.input_ids[end:following])
    begin = len(asked.input_ids)
    input_ids = (*asked.input_ids, *answer, *between)
    if len(input_ids) > limits.max_prompt_tokens:
        return None
    return replace(asked, input_ids=input_ids, spans=(*asked.spans, (begin, begin + len(answer))))


def _asked_next(asked: Prompt, answer: Tokens, after: Prompt, limits: Limits, turns: Turns) -> Prompt | None:
    """The prompt ``after`` this answer; None where nothing of it fits, or the template refuses the answer."""
    assert asked.dialogue is not None
    assert after.dialogue is not None
    said = str(turns.tokenizer.decode(list(answer), skip_special_tokens=True))
    between = after.dialogue.messages[len(asked.dialogue.messages) + 1 :]
    dialogue = continued(asked.dialogue, said, between)
    try:
        ids = fitted(dialogue, turns, limits.max_prompt_tokens).input_ids
    except RowError:
        return None
    return replace(after, input_ids=tuple(ids), dialogue=dialogue)
