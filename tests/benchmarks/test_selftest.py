"""The selftest passes on a sound engine and fails on a broken one."""

from __future__ import annotations

import time

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import PreTrainedModel

from specalign.benchmarks import selftest
from specalign.benchmarks.cli import main
from specalign.decoding.cache import RowCache
from specalign.decoding.verification import RULES, lenience
from specalign.errors import UserError

CPU = torch.device("cpu")


@pytest.mark.parametrize("family", ["gemma2", "t5"])
def test_parity_holds_and_a_wrong_output_is_noticed(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert selftest.parity(family, CPU).passed
    monkeypatch.setattr(selftest, "naive_greedy", lambda *_: [0] * selftest.N_NEW)
    assert selftest.parity(family, CPU).passed is False


@pytest.mark.parametrize("rule", ["token", "block", "lenience"])
def test_sampling_is_lossless_and_the_lossy_rule_is_caught(rule: str) -> None:
    assert selftest.losslessness(rule, CPU).passed


def test_a_lossy_rule_under_a_lossless_name_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES, "token", lenience)
    assert selftest.losslessness("token", CPU).passed is False


def test_half_precision_differs_by_rounding_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert selftest.half_precision(CPU).passed
    monkeypatch.setattr(selftest, "classify_divergence", lambda *_, **__: "unexplained")
    assert selftest.half_precision(CPU).passed is False


def test_steps_at_fresh_lengths_that_plan_a_kernel_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert selftest.fresh_lengths(CPU).passed
    met: set[int] = set()

    def planned(self: RowCache, n_new: int, device: torch.device) -> torch.Tensor:
        if self.lengths[0] not in met:
            met.add(self.lengths[0])
            time.sleep(0.02)
        return begin(self, n_new, device)

    begin = RowCache.begin
    monkeypatch.setattr(RowCache, "begin", planned)
    assert selftest.fresh_lengths(CPU).passed is False


def test_skipped_cuda_graphs_are_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs are right then, and times are not the device's."""
    monkeypatch.setattr(selftest, "make_stepper", lambda model, *_, **__: skip(model))

    def skip(model: PreTrainedModel) -> PreTrainedModel:
        counters["inductor"]["cudagraph_skips"] += n_skipped
        return model

    n_skipped = 0
    assert selftest.compiled_parity(CPU).passed
    n_skipped = 2
    assert selftest.compiled_parity(CPU).passed is False


def test_a_failure_is_shown_and_ends_with_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes = [selftest.Outcome("one", True, "a"), selftest.Outcome("two", None, "b")]
    monkeypatch.setattr(selftest, "selftest", lambda *_, **__: outcomes)
    main(["selftest", "--device", "cpu"])
    outcomes.append(selftest.Outcome("three", False, "c"))
    with pytest.raises(SystemExit, match="1"):
        main(["selftest", "--device", "cpu"])
    assert "FAIL" in capsys.readouterr().out


def test_a_device_that_is_not_there_is_the_users_mistake() -> None:
    with pytest.raises(UserError, match="CUDA devices"):
        main(["selftest", "--device", "cuda:97"])
