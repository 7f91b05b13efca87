"""The explainer: its predictions against simulated records, its sentences, its commands."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from specalign.benchmarks.cli import main
from specalign.benchmarks.comparison import seconds_per_token, summarise
from specalign.benchmarks.cost_model import StepCosts
from specalign.benchmarks.explain import Outlook, best, interpolated, plan, reason
from specalign.metrics.statistics import ratio_of_ratios_interval
from specalign.results import GenerationRecord, StepTrace


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
            simulated(name, 3, 0.6, f"p{i}", generator) for i in range(24) for name in ("drafter", "copy")
        ]
        ours, theirs = (list(cells.values()) for cells in seconds_per_token(records).values())
        found = ratio_of_ratios_interval((theirs, [1.0] * 24), (ours, [1.0] * 24))
        assert found
        assert found.low is not None
        assert found.high is not None
        missed += not found.low <= 1 <= found.high
    assert missed <= 4


SLOW_VERIFY = StepCosts(gamma=4, target_s=1, plain_overhead_s=0, draft_s=0.4, verify_s=1.6, overhead_s=0)
SLOW_DRAFT = StepCosts(gamma=4, target_s=1, plain_overhead_s=0, draft_s=2.0, verify_s=1.1, overhead_s=0)


def test_the_sentence_names_the_largest_cost() -> None:
    two = Outlook(2, 1.12, 0.4)
    assert "verifying 5 positions costs 1.60 single calls" in reason(SLOW_VERIFY, 1.2, two)
    assert "drafting 4 tokens costs 2.00 target calls" in reason(SLOW_DRAFT, 1.2, two)
    assert "the best gamma up to 4 is 2, predicted 1.12x" in reason(SLOW_VERIFY, 1.2, two)
    assert reason(SLOW_VERIFY, 3.0, two).startswith("faster")
    assert "no gamma up to 4 pays" in reason(SLOW_DRAFT, 1.0, Outlook(1, 0.9, 0.8))


def test_plan_is_leviathans_formula_where_verification_is_free() -> None:
    found = plan(target_s=1, verify_s=1, draft_s=0.1, overhead_s=0, alpha=0.7, gamma=4, gamma_max=6)
    for outlook in found:
        geometric = (1 - 0.7 ** (outlook.gamma + 1)) / (1 - 0.7)
        assert outlook.speedup == pytest.approx(geometric / (1 + 0.1 * outlook.gamma))
    assert best(found).speedup == max(outlook.speedup for outlook in found)


def test_verification_is_interpolated() -> None:
    seconds = interpolated({1: 1.0, 5: 3.0})
    assert [seconds(n) for n in (1, 3, 5)] == [1, 2, 3]


def test_plan_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    main(["plan", "--target-ms", "20", "--verify-ms", "22", "--draft-ms", "2", "--alpha", "0.8"])
    assert "use gamma =" in capsys.readouterr().out
    main(["plan", "--target-ms", "20", "--verify-ms", "60", "--draft-ms", "10", "--alpha", "0.1"])
    assert "no gamma pays" in capsys.readouterr().out


def test_explain_on_the_command_line(
    bench: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(bench("--decoding.temperatures", "0"))
    main(["explain", str(tmp_path / "run")])
    shown = capsys.readouterr().out
    assert "of the ceiling" in shown
    assert "copy, temperature 0, gamma 3: decoding runs at" in shown
    assert "Holm-adjusted p" in shown
