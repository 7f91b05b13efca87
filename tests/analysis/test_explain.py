"""The explainer: its predictions against simulated records, its sentences, its commands."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from specalign.analysis.cost_model import StepCosts
from specalign.analysis.explain import measured_parts, reason
from specalign.analysis.forced import like_positions
from specalign.analysis.outlook import Drafting, Outlook, best, outlooks, plan
from specalign.analysis.prediction import (
    call_seconds,
    entering_seconds,
    predicted_from_probes,
    probed_steps,
    target_seconds,
)
from specalign.analysis.speeds import speeds_of
from specalign.analysis.summary import summarise
from specalign.benchmarks.cli import main
from specalign.probes import CallProbe, ForcedProbe, Probe
from specalign.records import GenerationRecord, StepTrace


def simulated(
    method: str, gamma: int, alpha: float, prompt: str, generator: np.random.Generator
) -> GenerationRecord:
    """60 tokens at 50 ms a plain call, 5 ms a draft token, 10 ms more a verified position, 5 % noise."""
    columns: dict[str, list[float]] = {
        name: [] for name in ("n_drafted", "n_accepted", "draft", "verify", "rest")
    }
    left = 60
    while left:
        drafted = min(gamma, left - 1)
        accepted = min(drafted, int(generator.geometric(1 - alpha)) - 1) if alpha else 0
        noise = generator.lognormal(0, 0.05, 3)
        step = (
            drafted,
            accepted,
            5e-3 * drafted * noise[0],
            (50e-3 + 10e-3 * drafted) * noise[1],
            1e-3 * noise[2],
        )
        for column, value in zip(columns.values(), step, strict=True):
            column.append(value)
        left -= accepted + 1
    n_drafted, n_accepted = ([int(value) for value in columns[name]] for name in ("n_drafted", "n_accepted"))
    examined = [min(a + 1, d) for a, d in zip(n_accepted, n_drafted, strict=True)]
    emitted = [value + 1 for value in n_accepted]
    steps = StepTrace(
        n_drafted, examined, n_accepted, emitted, [[alpha] * n for n in examined],
        columns["draft"], columns["verify"], columns["rest"],
    )  # fmt: skip
    seconds = math.fsum([*steps.draft_s, *steps.verify_s, *steps.rest_s])
    return GenerationRecord(
        method, prompt, "", 0, 0, 1.0, 0, 1.0, gamma, "token" if gamma else "none", True, 0, 5, "ok",
        token_ids=list(range(60)), steps=steps, decode_s=seconds, wall_s=seconds,
    )  # fmt: skip


@pytest.mark.parametrize("gamma", range(1, 9))
def test_the_survival_prediction_is_within_5_percent(gamma: int) -> None:
    generator = np.random.default_rng(gamma)
    records = [
        simulated(*row, f"p{i}", generator)
        for i in range(20)
        for row in (("target", 0, 0.0), ("weak", gamma, 0.3), ("strong", gamma, 0.9))
    ]
    for row in summarise(records):
        if row.method != "target":
            assert row.decode_speedup
            assert row.predicted_speedup == pytest.approx(row.decode_speedup.value, rel=0.05)
            assert row.verify_ratio == pytest.approx((50 + 10 * gamma) / 50, rel=0.05)
            assert row.c == pytest.approx(0.1, rel=0.05)


def test_an_a_a_comparison_contains_one() -> None:
    """A drafter against its copy: at most 4 of 30 intervals may miss 1 (1.6 % chance of more at 95 % coverage)."""
    generator = np.random.default_rng(0)
    missed = 0
    for _ in range(30):
        records = [
            simulated(*row, f"p{i}", generator)
            for i in range(24)
            for row in (("target", 0, 0.0), ("drafter", 3, 0.6), ("copy", 3, 0.6))
        ]
        found = speeds_of(records).ratio(("drafter", 1.0, 3), ("copy", 1.0, 3))
        assert found
        ratio = found.interval()
        assert ratio.low is not None
        assert ratio.high is not None
        missed += not ratio.low <= 1 <= ratio.high
    assert missed <= 4


SLOW_VERIFY = StepCosts(gamma=4, target_s=1, plain_overhead_s=0, draft_s=0.4, verify_s=1.6, overhead_s=0)
SLOW_DRAFT = StepCosts(gamma=4, target_s=1, plain_overhead_s=0, draft_s=2.0, verify_s=1.1, overhead_s=0)


def test_the_sentence_names_the_largest_cost() -> None:
    two = Outlook(2, 1.12, 0.4, 0.1)
    assert reason(SLOW_VERIFY, 1.2, two, 0.6, "4bit") == (
        "slower because verification of 5 tokens costs 1.60 single steps here (4bit kernels are bound by computing); "
        "with gamma = 2 you would get 1.12x."
    )
    assert "drafting 4 tokens costs 2.00 target calls" in reason(SLOW_DRAFT, 1.2, two, 0.4)
    assert reason(SLOW_VERIFY, 3.0, two, 1.5).startswith("faster")
    assert "no other gamma would do better than 4" in reason(SLOW_VERIFY, 3.0, Outlook(4, 1.5, 0.4, 0.1), 1.5)
    assert "no gamma pays (best: 1, 0.90x)" in reason(SLOW_DRAFT, 1.0, Outlook(1, 0.9, 0.8, None), 0.3)


def test_what_was_measured_as_faster_is_not_called_slower() -> None:
    """Measured at 1.08x, by the medians of its steps 0.98x: neither "faster" nor "slower because"."""
    text = reason(SLOW_VERIFY, 1.96, Outlook(2, 1.12, 0.4, 0.1), 1.08)
    assert "measured at 1.08x, by the medians of its steps 0.98x" in text
    assert "slower" not in text
    assert "no gamma pays (best: 2, 0.56x)" in reason(SLOW_VERIFY, 1.96, Outlook(2, 0.56, 0.4, 0.1), 1.08)


def test_plan_is_leviathans_formula_where_verification_is_free() -> None:
    free = StepCosts(gamma=4, target_s=1, plain_overhead_s=0, draft_s=0.4, verify_s=1, overhead_s=0)
    found = plan(free, alpha=0.7, gamma_max=6)
    for outlook in found:
        geometric = (1 - 0.7 ** (outlook.gamma + 1)) / (1 - 0.7)
        assert outlook.speedup == pytest.approx(geometric / (1 + 0.1 * outlook.gamma))
    assert best(found).speedup == max(outlook.speedup for outlook in found)


def test_a_drafter_that_finds_little_is_not_helped_by_a_longer_gamma() -> None:
    """Half of its drafts are empty, the others hold one token: gamma 1, 2 and 3 are the same."""
    drafting = Drafting(lambda n: 1 + 0.5 * n, lambda n: 0.1 * n, lambda n: 1 + 0.2 * (n - 1), [0, 1])
    costs = StepCosts(gamma=1, target_s=1, plain_overhead_s=0, draft_s=0.1, verify_s=1.2, overhead_s=0)
    speeds = [outlook.speedup for outlook in outlooks(drafting, costs, 3)]
    assert speeds == pytest.approx([(1 + 1.5) / (1 + 1.3)] * 3)


PROBES: list[Probe] = [
    *(CallProbe("target", None, context, n, [9.0, 1e-3 * (50 + 10 * (n - 1) + context / 10), 0.0])
      for context in (0, 100) for n in (1, 9)),
    *(CallProbe("weak", 1.0, context, n, [5e-3 * n]) for context in (0, 100) for n in (1, 8)),
]  # fmt: skip


def test_calls_are_interpolated_between_contexts_and_counts() -> None:
    seconds = call_seconds(PROBES, "target", None)
    assert seconds
    assert seconds([1, 3, 9, 9], [0, 50, 100, 500]) == pytest.approx([0.05, 0.075, 0.14, 0.14])
    assert call_seconds(PROBES, "weak", 0.0) is None


def test_a_draft_takes_longer_where_more_was_accepted_before_it() -> None:
    """Of a head: 10 ms and 1 ms for each accepted token that it enters, at every number of tokens that it drafts."""
    probes: list[Probe] = [
        *PROBES[:4],
        *(CallProbe("head", 1.0, 0, n, [2e-3 * n + 4e-3]) for n in (1, 3)),
        *(CallProbe("head", 1.0, 0, 3, [(10 + a) * 1e-3], n_accepted=a) for a in (1, 3)),
    ]
    drafts, entering = (of(probes, "head", 1.0) for of in (call_seconds, entering_seconds))
    assert drafts
    assert entering
    assert drafts([1, 2, 3], [0, 0, 50]) == pytest.approx([6e-3, 8e-3, 10e-3])
    assert entering([0, 1, 2, 3, 9], [0] * 5) == pytest.approx([0, 1e-3, 2e-3, 3e-3, 3e-3])
    assert entering_seconds(probes, "weak", 1.0) is None
    trace = StepTrace(
        n_drafted=[3, 3, 0, 1], n_examined=[3, 1, 0, 1], n_accepted=[2, 0, 0, 1], n_emitted=[3, 1, 1, 2],
        overlap=[[1.0] * 3, [0.0], [], [1.0]], draft_s=[0.0] * 4, verify_s=[0.0] * 4, rest_s=[0.0] * 4,
    )  # fmt: skip
    record = dataclasses.replace(
        simulated("weak", 3, 0.5, "p", np.random.default_rng(0)), method="head", temperature=1.0, steps=trace
    )
    found = probed_steps([record], probes)
    assert found
    # nothing was accepted before the first; two were, then none, and one came while nothing was drafted
    assert found.draft_s == pytest.approx([10e-3, 12e-3, 0, 7e-3])


def test_prompt_lookups_verification_follows_the_targets_own_call() -> None:
    """Drafting with a model leaves another cache than drafting without."""
    probes = [
        *PROBES[:1],
        CallProbe("target", None, 0, 3, [0.06], "draft"),
        CallProbe("target", None, 0, 3, [0.05], "target"),
    ]
    for method, seconds in (("prompt_lookup", 0.05), ("weak", 0.06)):
        calls = target_seconds(probes, method)
        assert calls
        assert calls([3], [0]) == pytest.approx([seconds])


def test_the_prediction_from_calls_timed_apart() -> None:
    """The simulation's own constants as probes: within 5 % of what the simulation measured, at every context."""
    generator = np.random.default_rng(0)
    flat = [
        CallProbe(p.method, p.temperature, 0, p.n_tokens, p.seconds) for p in PROBES if isinstance(p, CallProbe)
    ]
    rows = [
        simulated(*row, f"p{i}", generator) for i in range(20) for row in (("target", 0, 0.0), ("weak", 4, 0.6))
    ]
    ours = [record for record in rows if record.gamma]
    row = next(row for row in summarise(rows, None, flat) if row.gamma)
    assert row.decode_speedup
    assert row.predicted_from_probes == pytest.approx(row.decode_speedup.value, rel=0.05)
    assert predicted_from_probes(ours, [], row.survival_by_position, flat) is None
    assert summarise(rows)[1].predicted_from_probes is None


def test_the_parts_of_a_step_add_up() -> None:
    """One step a token of 5 + 60 + 1 ms, a plain call being 50, and 2 ms a step that no part knows of."""
    record = simulated("weak", 1, 0.0, "p", np.random.default_rng(0))
    assert record.steps
    n = len(record.steps.n_drafted)
    steps = StepTrace(
        [1] * n, [1] * n, [0] * n, [1] * n, [[0.0]] * n, [0.005] * n, [0.06] * n, [0.001] * n
    )  # fmt: skip
    costs = StepCosts(
        gamma=1, target_s=0.05, plain_overhead_s=0, draft_s=0.005, verify_s=0.06, overhead_s=0.001
    )
    parts = measured_parts(costs, [dataclasses.replace(record, steps=steps, decode_s=n * 0.068)])
    assert dataclasses.astuple(parts) == pytest.approx((50, 5, 10, 1, 2))
    assert parts.total == pytest.approx(68)


def test_like_positions_skip_bonus_tokens() -> None:
    """Two accepted drafts and a bonus, then one rejected: the third output token was never examined."""
    steps = StepTrace([2, 1], [2, 1], [2, 0], [3, 1], [[1.0, 1.0], [0.0]], [0.0] * 2, [0.0] * 2, [0.0] * 2)
    ours = dataclasses.replace(
        simulated("weak", 2, 0.5, "p", np.random.default_rng(0)),
        temperature=0.0,
        token_ids=[1, 2, 3, 4],
        steps=steps,
    )
    plain = dataclasses.replace(ours, method="target", steps=None)
    forced = ForcedProbe("weak", "p", 0, 0.0, [1.0, 1.0, 0.0, 1.0])
    assert like_positions([ours], [plain], [forced]) == [(1.0, 1.0), (1.0, 1.0), (0.0, 1.0)]
    other = dataclasses.replace(plain, token_ids=[1, 2, 3, 5])
    assert like_positions([ours], [other], [forced]) == []


def test_plan_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    main(["plan", "--target-ms", "20", "--verify-ms", "22", "--draft-ms", "2", "--alpha", "0.8"])
    assert "use gamma =" in capsys.readouterr().out
    main(["plan", "--target-ms", "20", "--verify-ms", "60", "--draft-ms", "10", "--alpha", "0.1"])
    assert "no gamma pays" in capsys.readouterr().out
    main(["plan", "--target-ms", "20", "--draft-ms", "2", "--alpha", "0.8", "--deviation", "0.05"])
    shown = capsys.readouterr().out
    assert "use gamma = 6: 2.47x" in shown, "verification is free where --verify-ms is left out"
    assert "A difference of 3.0% takes 28 prompts" in shown


def test_explain_on_the_command_line(
    bench: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(bench("--decoding.temperatures", "0"))
    main(["explain", str(tmp_path / "run")])
    shown = capsys.readouterr().out
    assert "of the ceiling" in shown
    assert "decoding alone runs at" in shown
    assert "alpha: 1.000 counted, 1.000 expected in decoding, 1.000 teacher-forced" in shown
    assert "the two differ at 0.0% of them" in shown
    assert "verify growth:" in shown
    assert "Differences in speed at temperature 0, paired by prompt:" in shown
