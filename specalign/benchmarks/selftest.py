"""What a new machine must show before its numbers count: parity, losslessness, and a clock that tells the truth."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

import numpy as np
import torch
from rich.table import Table
from rich.text import Text
from scipy import stats
from torch import Tensor
from torch._dynamo.utils import counters
from transformers import PreTrainedModel

from specalign.decoding import Drafter, ModelDrafter, PromptLookup, Shapes, generate, make_stepper
from specalign.decoding.clock import Clock
from specalign.decoding.divergence import classify_divergence
from specalign.decoding.sampling import Sampling, probabilities
from specalign.decoding.session import decoder_sequences
from specalign.models.devices import prepare_device
from specalign.models.heads import head_of, hidden_states
from specalign.models.tiny import FAMILIES, make_model, perturbed
from specalign.progress import progress_bar

PROMPTS = [[5, 9, 31, 7, 7, 12, 9], [3, 8, 20], [17]]
N_NEW, GAMMA = 16, 3
VOCAB, N_SAMPLED, N_SAMPLES = 5, 3, 3000
LEAST_P_VALUE, MOST_P_VALUE_OF_A_LOSSY_RULE = 1e-4, 1e-9
CLOCK_TOLERANCE = 0.05
MOST_SECONDS_OF_A_FRESH_LENGTH = 3.0
"""As a multiple of a known one's; cuDNN's attention took hundreds."""


@dataclass(frozen=True)
class Outcome:
    """One line of the table."""

    name: str
    passed: bool | None
    """None: could not be tried here."""
    detail: str


def selftest(device: torch.device, *, compiled: bool = True) -> list[Outcome]:
    """Run everything on ``device``."""
    prepare_device(device)
    jobs: list[Callable[[], Outcome]] = [partial(parity, family, device) for family in FAMILIES]
    jobs += [partial(half_precision, device)]
    jobs += [partial(compiled_parity, device)] if compiled else []
    jobs += [partial(losslessness, rule, device) for rule in ("token", "block", "lenience")]
    jobs += [partial(clock_against_wall, device), partial(waiting, device), partial(fresh_lengths, device)]
    outcomes = []
    with progress_bar("testing this machine", len(jobs)) as bar:
        for job in jobs:
            outcomes.append(job())
            bar.advance()
    return outcomes


def results_table(outcomes: Sequence[Outcome], device: torch.device) -> Table:
    """One row an outcome."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    table = Table(title=f"specalign-bench selftest on {name}")
    for column in ("test", "result", "detail"):
        table.add_column(column)
    words = {True: Text("pass", "green"), False: Text("FAIL", "red"), None: Text("not tried")}
    for outcome in outcomes:
        table.add_row(outcome.name, words[outcome.passed], outcome.detail)
    return table


def parity(family: str, device: torch.device) -> Outcome:
    """Greedy speculative output equals a loop without any cache, token for token, in float64."""
    target, near = _on(device, make_model(family)), _on(device, perturbed(make_model(family), 0.05))
    expected = [naive_greedy(target, prompt, N_NEW) for prompt in PROMPTS]
    drafters: list[Drafter | None] = [None, ModelDrafter(near), PromptLookup()]
    found = [
        generate(target, drafter, PROMPTS, gamma=GAMMA, max_new_tokens=N_NEW, eos=()).token_ids
        for drafter in drafters
    ]
    wrong = sum(rows != expected for rows in found)
    detail = f"{len(PROMPTS)} prompts plainly, with a model and with prompt lookup: {wrong} of 3 batches differ"
    return Outcome(f"parity, {family}", not wrong, detail)


def half_precision(device: torch.device) -> Outcome:
    """In bfloat16, where kernels round by shape: plain and speculative output differ by ties and rounding alone."""
    target, near = (
        _on(device, model).bfloat16() for model in (make_model("llama"), perturbed(make_model("llama"), 0.05))
    )
    plain, speculative = (
        generate(target, drafter, PROMPTS, gamma=GAMMA, max_new_tokens=N_NEW, eos=()).token_ids
        for drafter in (None, ModelDrafter(near))
    )
    found = Counter(
        classify_divergence(target, prompt, ours, theirs, gamma=GAMMA)
        for prompt, ours, theirs in zip(PROMPTS, speculative, plain, strict=True)
    )
    detail = ", ".join(f"{kind}: {n}" for kind, n in sorted(found.items()))
    return Outcome("bfloat16, llama", not found["unexplained"], f"why outputs differ: {detail}")


def compiled_parity(device: torch.device) -> Outcome:
    """A compiled target decodes what the loop without cache does; not tried where nothing can be compiled.

    On CUDA its steps must be CUDA graphs: where inductor skips these, it is Python's launches that are timed.
    """
    skipped = counters["inductor"]["cudagraph_skips"]
    model = _on(device, make_model("llama"))
    expected = [naive_greedy(model, prompt, N_NEW) for prompt in PROMPTS]
    shapes = Shapes(sizes=(1, GAMMA + 1), capacity=64, n_rows=len(PROMPTS))
    begin = time.perf_counter()
    try:
        target = make_stepper(model, "compiled", shapes=shapes)
    except RuntimeError as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        return Outcome("parity, compiled llama", None, f"nothing can be compiled here: {reason[0][:120]}")
    compile_s = time.perf_counter() - begin
    found = generate(target, PromptLookup(), PROMPTS, gamma=GAMMA, max_new_tokens=N_NEW, eos=()).token_ids
    skipped = counters["inductor"]["cudagraph_skips"] - skipped
    graphs = f"; CUDA graphs skipped {skipped} times" if device.type == "cuda" else ""
    right = found == expected and not skipped
    return Outcome("parity, compiled llama", right, f"compiled in {compile_s:.0f} s{graphs}")


def losslessness(rule: str, device: torch.device) -> Outcome:
    """Joint distribution of the first tokens against the exact one; lenience, a lossy rule, must be caught."""
    target = _on(device, make_model("llama", vocab=VOCAB, scale=6.0))
    drafter = _on(device, make_model("llama", 3, vocab=VOCAB, scale=6.0))
    result = generate(
        target,
        ModelDrafter(drafter),
        [[3, 1, 4, 1]] * N_SAMPLES,
        gamma=2,
        temperature=1.0,
        max_new_tokens=N_SAMPLED,
        rule=rule,
        eos=(),
        generator=torch.Generator(device).manual_seed(11),
    )
    p_value = chi_square(Counter(map(tuple, result.token_ids)), exact_joint(target, [3, 1, 4, 1]))
    detail = f"chi-square of {N_SAMPLES} samples of {N_SAMPLED} tokens: p = {p_value:.2g}"
    if rule == "lenience":
        caught = p_value < MOST_P_VALUE_OF_A_LOSSY_RULE
        return Outcome("a lossy rule is caught", caught, detail)
    return Outcome(f"lossless sampling, {rule}", p_value > LEAST_P_VALUE, detail)


def clock_against_wall(device: torch.device) -> Outcome:
    """The steps' times, the engine's wall time and a clock around the call tell one story."""
    target, drafter = _on(device, make_model("llama")), _on(device, make_model("llama", 1))
    Clock(device).settle()
    generate(target, ModelDrafter(drafter), PROMPTS[0], max_new_tokens=8, eos=())
    begin = Clock(device).settle()
    result = generate(target, ModelDrafter(drafter), PROMPTS[0], max_new_tokens=48, eos=())
    outside_s = Clock(device).settle() - begin
    steps_s = sum(step.draft_s + step.verify_s + step.rest_s for step in result.steps[0])
    inside, outside = steps_s / result.decode_s, result.wall_s / outside_s
    passed = all(1 - CLOCK_TOLERANCE <= ratio <= 1 + CLOCK_TOLERANCE for ratio in (inside, outside))
    detail = f"steps are {inside:.1%} of the decoding, the engine's time {outside:.1%} of a clock around it"
    return Outcome("clock against wall", passed, detail)


def waiting(device: torch.device) -> Outcome:
    """Marks measure the device's work, not how fast the host queues it: n times the work takes n times as long."""
    clock, matrix = Clock(device), torch.randn(1024, 1024, device=device)

    def seconds(n: int) -> float:
        start = clock.mark()
        for _ in range(n):
            matrix @ matrix
        end = clock.mark()
        clock.settle()
        return clock.seconds(start, end)

    seconds(4)
    ratio = float(np.median([seconds(40) / seconds(10) for _ in range(5)]))
    return Outcome("synchronisation", 2.5 < ratio < 6.5, f"four times the work takes {ratio:.1f} times as long")


def fresh_lengths(device: torch.device) -> Outcome:
    """Steps at lengths that were never met before take what they take the second time: no kernel is planned anew."""
    target = _on(device, make_model("llama", max_positions=256)).bfloat16()

    def steps(prompt: list[int]) -> list[float]:
        result = generate(target, None, prompt, max_new_tokens=64, eos=())
        return [step.verify_s for step in result.steps[0]]

    steps([5])
    first, second = steps([5] * 100), steps([5] * 100)
    ratio = float(np.median(first) / np.median(second))
    passed = ratio < MOST_SECONDS_OF_A_FRESH_LENGTH
    return Outcome("fresh lengths", passed, f"a step takes {ratio:.1f} times what it takes the second time")


def naive_greedy(model: PreTrainedModel, prompt: Sequence[int], n: int) -> list[int]:
    """Greedy decoding at its plainest, without any cache."""
    new: list[int] = []
    for _ in range(n):
        new.append(int(next_logits(model, prompt, new).argmax()))
    return new


@torch.inference_mode()
def next_logits(model: PreTrainedModel, prompt: Sequence[int], new: Sequence[int]) -> Tensor:
    """Logits [V] after a prompt and new tokens, by one call without a cache."""
    (start,) = decoder_sequences(model, [prompt])
    inputs = {"input_ids": torch.tensor([[*start, *new]], device=model.device)}
    if model.config.is_encoder_decoder:
        encoder_ids = torch.tensor([list(prompt)], device=model.device)
        inputs = {"input_ids": encoder_ids, "decoder_input_ids": inputs["input_ids"]}
    return head_of(model)(hidden_states(model, **inputs)[0, -1])


def exact_joint(target: PreTrainedModel, prompt: Sequence[int]) -> dict[tuple[int, ...], float]:
    """Probability of every sequence of N_SAMPLED tokens at temperature 1."""
    joint: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(N_SAMPLED):
        p = {text: probabilities(next_logits(target, prompt, text), Sampling(1.0)).tolist() for text in joint}
        joint = {(*text, token): joint[text] * p[text][token] for text, token in product(joint, range(VOCAB))}
    return joint


def chi_square(counts: Counter[tuple[int, ...]], joint: dict[tuple[int, ...], float]) -> float:
    """p-value of the counts under ``joint``; cells expected less than five times are one cell."""
    expected = counts.total() * np.array(list(joint.values()))
    observed = np.array([counts[text] for text in joint])
    rare = expected < 5
    expected = np.append(expected[~rare], expected[rare].sum())
    observed = np.append(observed[~rare], observed[rare].sum())
    kept = expected > 0
    return float(stats.chisquare(observed[kept], expected[kept]).pvalue)


def _on(device: torch.device, model: PreTrainedModel) -> PreTrainedModel:
    torch.nn.Module.to(model, device)
    return model
