"""Conversations in which the teacher has given every answer itself."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from specalign.data import Prompt
from specalign.training.rollouts import Tokens

Write = Callable[[Sequence[Prompt]], dict[str, Tokens]]
"""The last answer to each prompt, by prompt id."""


@dataclass(frozen=True)
class Told:
    """What a writer made of some prompts, by prompt id, in their order."""

    prompts: dict[str, Prompt]
    """With its own earlier answers in place of the data's; their spans end where it ended, or was cut off."""
    responses: dict[str, Tokens]
    """Its last answers."""
    n_shortened: int
    """Conversations that end early, since with its answers the next prompt would be longer than it may be."""


def told(prompts: Sequence[Prompt], write: Write, ends: Collection[int], limit: int) -> Told:
    """Let ``write`` give each answer of each prompt in order, seeing its own earlier ones.

    What stands between two answers is the data's, token by token; an answer that was cut off is closed by the token
    that ends the data's. A conversation ends with the answer after which the next prompt would exceed ``limit``.
    """
    asked: dict[str, Prompt] = {}
    last: dict[str, Tokens] = {}
    n_shortened = 0
    growing = {prompt.id: _begun(prompt) for prompt in prompts}
    whole = {prompt.id: prompt for prompt in prompts}
    while growing:
        answers = write(list(growing.values()))
        going_on = {}
        for id_, prompt in growing.items():
            longer = _grown(prompt, answers[id_], whole[id_], ends)
            if longer is not None and len(longer.input_ids) <= limit:
                going_on[id_] = longer
            else:
                asked[id_], last[id_] = prompt, answers[id_]
                n_shortened += longer is not None
        growing = going_on
    return Told({id_: asked[id_] for id_ in whole}, {id_: last[id_] for id_ in whole}, n_shortened)


def _begun(prompt: Prompt) -> Prompt:
    """Up to the first answer that is trained on."""
    first = prompt.spans[0][0] if prompt.spans else len(prompt.input_ids)
    return replace(prompt, input_ids=prompt.input_ids[:first], spans=())


def _grown(asked: Prompt, answer: Tokens, whole: Prompt, ends: Collection[int]) -> Prompt | None:
    """Up to the next answer; None where this was the last one."""
    turn = len(asked.spans)
    if turn == len(whole.spans):
        return None
    _, end = whole.spans[turn]
    following = whole.spans[turn + 1][0] if turn + 1 < len(whole.spans) else len(whole.input_ids)
    closing = whole.input_ids[end - 1 : end]
    closed = bool(answer) and answer[-1] in ends
    between = (*(() if closed or closing[0] not in ends else closing), *whole.input_ids[end:following])
    begin = len(asked.input_ids)
    return replace(
        asked,
        input_ids=(*asked.input_ids, *answer, *between),
        spans=(*asked.spans, (begin, begin + len(answer))),
    )
