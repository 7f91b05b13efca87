"""Drafter metrics on held-out prompts: teacher-forced overlap and agreement, and a real speculative decode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain, groupby
from typing import Any, TypeVar

import torch
from torch import Tensor

from specalign.data import Prompt
from specalign.data.examples import Split
from specalign.decoding import drafter_of, generate
from specalign.models.mask_token import masks_of
from specalign.training.materials import Materials
from specalign.training.parallel import Scored, with_masks
from specalign.training.rows import Layout, Row, lay_out
from specalign.training.scoring import Pair, observed, overlaps

Measured = list[list[list[float]]]
"""A number for each position of each answer to each prompt."""
Drafts = Sequence[Sequence[float]]
"""Of each draft the alphas of its tokens."""
T = TypeVar("T")
BATCH = 8
"""Sequences of one forward pass."""


@dataclass(frozen=True)
class Score:
    """Metrics over the validation positions, all of the teacher's own responses."""

    alpha: float
    """Mean sum_v min(p, q): expected acceptance rate at temperature 1."""
    alpha_se: float
    """Its standard error, from the spread between prompts."""
    agreement: float
    """Share of positions with the same argmax: expected acceptance rate at temperature 0."""
    tau: float
    """Expected tokens per target call, 1 + sum over draft positions of the product of alphas so far; of a head each
    position's alpha is that of its own step."""
    n_positions: int
    by_place: tuple[float, ...] = ()
    """Mean alpha of the first, second, ... token of a parallel draft, or a head's; empty: all come from the same
    positions."""


@dataclass(frozen=True)
class ProbeScore:
    """What a real speculative decode of a few prompts came to, at temperature 1."""

    alpha: float
    """Mean sum_v min(p, q) at the examined positions."""
    alpha_se: float
    tau: float
    """Tokens per target call."""
    n_examined: int


@dataclass(frozen=True)
class Validation:
    """Held-out sequences with the teacher's hidden states, which are computed once, and those that a head reads."""

    batches: tuple[tuple[Layout, Tensor], ...]
    n_answers: tuple[int, ...]
    """Of each prompt: a conversation may have several, which are scored apart and counted as one prompt's."""
    prompts: tuple[tuple[int, ...], ...]
    """Each with all that stands before its last answer."""
    max_response_tokens: int
    gamma: int = 4
    """Draft length of the expected tau and of the probe."""
    prompt_ids: tuple[str, ...] = ()
    """Ids of the prompts."""

    def score(self, pair: Pair) -> Score:
        """Teacher-forced metrics of the student."""
        alphas, agreements, drafts = self._measured(pair)
        flat = [value for prompt in alphas for answer in prompt for value in answer]
        whole = [draft for prompt in drafts for answer in prompt for draft in answer]
        places = zip(*whole, strict=True) if pair.reads or masks_of(pair.student.config) else ()
        return Score(
            alpha=sum(flat) / len(flat),
            alpha_se=clustered_se([list(chain(*prompt)) for prompt in alphas]),
            agreement=sum(map(sum, chain(*agreements))) / len(flat),
            tau=tau_of_drafts(whole),
            n_positions=len(flat),
            by_place=tuple(sum(place) / len(place) for place in places),
        )

    def by_prompt(self, pair: Pair) -> list[dict[str, Any]]:
        """The same of every prompt, with its id: the lines of validation.jsonl and held_out.jsonl."""
        return [
            {
                "prompt_id": name,
                "n_positions": (n := sum(map(len, alphas))),
                "alpha": sum(map(sum, alphas)) / n,
                "agreement": sum(map(sum, agreements)) / n,
                "gamma": self.gamma,
                "n_windows": sum(map(len, drafts)),
                "tau": tau_of_drafts(list(chain(*drafts))),
            }
            for name, alphas, agreements, drafts in zip(self.prompt_ids, *self._measured(pair), strict=True)
        ]

    @torch.no_grad()
    def _measured(self, pair: Pair) -> tuple[Measured, Measured, list[list[Drafts]]]:
        """sum_v min(p, q), and 1 where the argmax is the same, and the alphas of each draft of gamma tokens that ends
        with the answer at the latest: a window, what masks draft there, or the steps of a head."""
        was_training = pair.student.training
        pair.student.eval()
        alphas: list[list[float]] = []
        agreements: list[list[float]] = []
        drafts: list[Drafts] = []
        masks = masks_of(pair.student.config)
        n_masks = min(self.gamma, masks.most) - 1 if masks else 0
        for layout, teacher_states in self.batches:
            scored = (
                Scored(layout, layout)
                if masks is None
                else with_masks(layout, masks, [n_masks] * layout.n_tokens)
            )
            found = overlaps(pair, scored.layout, scored.spread(teacher_states), n_steps=self.gamma)
            alpha, agreement = scored.by_copy(found.alpha), scored.by_copy(found.agreement)
            for sequence in layout.sequence_ids.unique().tolist():
                own = (layout.sequence_ids == sequence).nonzero().squeeze(-1).tolist()
                alphas.append([alpha[n][0] for n in own])
                agreements.append([agreement[n][0] for n in own])
                copies = [alpha[n] for n in own if len(alpha[n]) > n_masks]
                steps = found.drafted[:, own].tolist()
                drafts.append(windows(steps, self.gamma) if masks is None else copies)
        pair.student.train(was_training)
        return self._by_prompt(alphas), self._by_prompt(agreements), self._by_prompt(drafts)

    def _by_prompt(self, answers: Sequence[T]) -> list[list[T]]:
        rest = iter(answers)
        return [[next(rest) for _ in range(n)] for n in self.n_answers]

    def probe(self, pair: Pair, n_prompts: int, generator: torch.Generator) -> ProbeScore:
        """Decode the first prompts speculatively at temperature 1, with the drafter as it will be used."""
        was_training = pair.student.training
        pair.student.eval()
        done = generate(
            pair.teacher,
            drafter_of(pair.student, pair.draft_vocabulary),
            self.prompts[:n_prompts],
            gamma=self.gamma,
            temperature=1.0,
            max_new_tokens=self.max_response_tokens,
            generator=generator,
        )
        pair.student.train(was_training)
        alphas = [[value for step in steps for value in step.overlap] for steps in done.steps]
        flat = [value for sequence in alphas for value in sequence]
        n_calls = sum(len(steps) for steps in done.steps)
        return ProbeScore(
            alpha=sum(flat) / max(1, len(flat)),
            alpha_se=clustered_se([values for values in alphas if values]),
            tau=sum(map(len, done.token_ids)) / max(1, n_calls),
            n_examined=len(flat),
        )


def held_out_rows(materials: Materials, split: Split) -> tuple[list[Prompt], list[Row]]:
    """The prompts of a split that the teacher answers, and a row of each with its answer."""
    responses = materials.responses(split)
    told = materials.told(split)
    prompts = [told[prompt.id] for prompt in materials.prompts(split) if responses[prompt.id]]
    return prompts, [row_of(materials, prompt, responses[prompt.id]) for prompt in prompts]


def make_validation(
    materials: Materials, split: Split = "validation", reads: tuple[int, ...] = ()
) -> Validation:
    """Lay out the teacher's responses to the prompts of a split that is held out, and run the teacher over them.

    ``reads`` are the layers whose states a head reads.
    """
    prompts, rows = held_out_rows(materials, split)
    talks = [list(talk) for _, talk in groupby(zip(prompts, rows, strict=True), lambda each: each[0].row_id)]
    batches = []
    for begin in range(0, len(rows), BATCH):
        group = rows[begin : begin + BATCH]
        layout = lay_out(group, packed=False, device=materials.device)
        if materials.config.teacher.reuse_states:
            batches.append(materials.teacher_states.observed(group, layout, packed=False, reads=reads))
        else:
            batches.append(observed(materials.teacher, layout, reads))
    return Validation(
        tuple(batches),
        tuple(sum(bool(answer.tokens) for _, row in talk for answer in row.scored) for talk in talks),
        tuple(talk[-1][0].input_ids for talk in talks),
        materials.config.data.max_response_tokens,
        prompt_ids=tuple(talk[-1][0].row_id for talk in talks),
    )


def windows(steps: Sequence[Sequence[float]], gamma: int) -> Drafts:
    """The whole windows of ``gamma`` values: what a drafter that reads its own tokens drafts from each position.

    ``steps[j][t]`` is alpha of the token that step j of a draft proposes at position t, given the text before it; the
    last step that is given stands for later ones, a model's only one for all. The values along the sequence stand for
    those along the accepted tokens; positions nearer to the end draft less.
    """
    last = len(steps) - 1
    return [
        [steps[min(j, last)][begin + j] for j in range(gamma)] for begin in range(len(steps[0]) - gamma + 1)
    ]


def tau_of_drafts(drafts: Drafts) -> float:
    """Mean of 1 + sum_j prod_{i=1..j} alpha_i over drafts of tokens with acceptance alpha_1, alpha_2, ..."""
    taus = []
    for draft in drafts:
        product, tau = 1.0, 1.0
        for alpha in draft:
            product *= alpha
            tau += product
        taus.append(tau)
    return sum(taus) / len(taus) if taus else 1.0


def clustered_se(values: Sequence[Sequence[float]]) -> float:
    """Standard error of the pooled mean where the values of one sequence depend on each other.

    Linearised ratio estimator: sqrt(m / (m - 1) * sum_s (sum of residuals of s)^2) / N, for m sequences.
    """
    n = sum(map(len, values))
    if len(values) < 2 or not n:
        return 0.0
    mean = sum(map(sum, values)) / n
    residuals = [sum(sequence) - mean * len(sequence) for sequence in values]
    m = len(values)
    return (m / (m - 1) * sum(residual**2 for residual in residuals)) ** 0.5 / n


def disagreement(score: Score, probe: ProbeScore) -> str | None:
    """A warning where teacher-forced and decoded acceptance differ by more than noise, else None."""
    noise = (score.alpha_se**2 + probe.alpha_se**2) ** 0.5
    if abs(score.alpha - probe.alpha) <= max(3 * noise, 0.02):
        return None
    return (
        f"teacher-forced alpha {score.alpha:.3f} and alpha in real decoding {probe.alpha:.3f} differ by more than "
        f"three standard errors ({noise:.3f}): compare the data's template, lengths and temperature with decoding's"
    )


def as_fields(score: Score, probe: ProbeScore | None) -> dict[str, float]:
    """Both as flat fields of train.jsonl; alpha_2, alpha_3, ... are those of the later tokens of a parallel draft."""
    extra = {} if probe is None else {f"probe_{name}": value for name, value in asdict(probe).items()}
    found = asdict(score)
    later = {f"alpha_{place}": alpha for place, alpha in enumerate(found.pop("by_place"), 1) if place > 1}
    return {**found, **later, **extra}


def row_of(materials: Materials, prompt: Prompt, response: tuple[int, ...]) -> Row:
    """The row of one prompt, its earlier answers included, and one response."""
    if materials.teacher.config.is_encoder_decoder:
        from specalign.models.properties import decoder_start_id

        return Row((decoder_start_id(materials.teacher), *response), 1, (), prompt.input_ids)
    return Row(prompt.input_ids + response, len(prompt.input_ids), spans=prompt.spans)
