"""Probes of real runs: contexts, counts, and teacher-forced acceptance that agrees with the engine's own."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration

from specalign.analysis.forced import like_positions
from specalign.analysis.sampled_tokens import sampler_tests
from specalign.benchmarks import runner
from specalign.benchmarks.cli import parse_run
from specalign.decoding.verification import RULES, lenience
from specalign.probes import CallProbe, CopyProbe, ForcedProbe, ModelProbe, SampledProbe
from specalign.run_files import RunFiles, read_run

Bench = Callable[..., list[str]]


@pytest.fixture
def measure(bench: Bench, tmp_path: Path) -> Callable[..., RunFiles]:
    def run(*flags: str, drafters: tuple[str, ...] = ("small",)) -> RunFiles:
        runner.run(parse_run(bench(*flags, drafters=drafters)[1:]))
        return read_run(tmp_path / "run")

    return run


def t5(folder: Path, tokenizer: Path, n_layers: int) -> str:
    torch.manual_seed(n_layers)
    config = T5Config(
        vocab_size=64, d_model=16, d_kv=8, d_ff=24, num_layers=n_layers, num_heads=2, initializer_factor=5.0,
        pad_token_id=0, eos_token_id=2,
    )  # fmt: skip
    config.decoder_start_token_id = 0
    T5ForConditionalGeneration(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    return str(folder)


def test_calls_at_three_contexts_for_every_count(measure: Callable[..., RunFiles]) -> None:
    """Prompts have 7 to 9 tokens here and outputs 12; gamma is 2 or 3."""
    run = measure("--decoding.gammas", "2", "3")
    lengths = [record.n_prompt_tokens for record in run.records]
    contexts = {min(lengths), (min(lengths) + max(lengths) + 12) // 2, max(lengths) + 12}
    calls = [probe for probe in run.probes if isinstance(probe, CallProbe)]
    kinds = {(call.method, call.temperature, call.context, call.n_tokens) for call in calls}
    expected: set[tuple[str, float | None, int, int]]
    expected = {("target", None, context, n) for context in contexts for n in (1, 2, 3, 4)}
    expected |= {
        (method, temperature, context, n)
        for method in ("prompt_lookup", "small")
        for temperature in (0.0, 1.0)
        for context in contexts
        for n in (1, 3)
    }
    assert kinds == expected
    verifications = {("target", None, context, n) for context in contexts for n in (2, 3, 4)}
    n_kinds = len(expected) + len(verifications)  # after a model's draft, and after the target's own call
    assert len(calls) == 4 * n_kinds, "twelve times in a run, every third time the same context"
    assert {call.after for call in calls if call.n_tokens > 1 and call.method == "target"} == {
        "draft",
        "target",
    }
    assert {call.after for call in calls if call.n_tokens == 1 or call.method != "target"} == {""}
    assert all(len(call.seconds) == 2 and min(call.seconds) > 0 for call in calls)


def test_contexts_end_where_the_models_end(measure: Callable[..., RunFiles]) -> None:
    run = measure("--decoding.max-new-tokens", "200", "--decoding.temperatures", "0", "--data.limit", "1")
    longest = max(probe.context for probe in run.probes if isinstance(probe, CallProbe))
    assert longest == 64 - 3 - 1, "64 positions, gamma + 1 of which are the call's own"


def test_facts_are_measured_once(measure: Callable[..., RunFiles]) -> None:
    run = measure("--decoding.temperatures", "0", "--data.limit", "1")
    sizes = {probe.method: probe for probe in run.probes if isinstance(probe, ModelProbe)}
    assert set(sizes) == {"target", "small"}
    assert (
        sizes["target"].n_multiplied == run.result.target.n_multiplied == run.result.target.bytes_per_step / 4
    )
    assert sum(isinstance(probe, CopyProbe) for probe in run.probes) == 1


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_teacher_forced_overlap_is_the_engines(
    measure: Callable[..., RunFiles], models_folder: Path, tmp_path: Path, family: str
) -> None:
    """Along equal greedy outputs everywhere; at temperature 1 before the first token, where no sample matters yet."""
    flags = ["--include"]
    if family == "t5":
        target, drafter = (t5(tmp_path / str(n), models_folder / "target", n) for n in (2, 1))
        flags += ["--target.model", target, "--drafter", f"small={drafter}"]
    run = measure(*flags, drafters=("small",) if family == "llama" else ())
    ours = [record for record in run.records if record.method == "small"]
    plain = [record for record in run.records if record.method == "target"]
    pairs = like_positions(ours, plain, run.probes)
    assert len(pairs) >= 4
    assert all(decoding == forced for decoding, forced in pairs)
    first = {
        probe.prompt_id: probe.overlap[0]
        for probe in run.probes
        if isinstance(probe, ForcedProbe) and probe.temperature == 1
    }
    sampled = [record for record in ours if record.temperature == 1 and record.steps]
    assert len(sampled) == 4
    for record in sampled:
        assert record.steps
        assert record.steps.overlap[0][0] == pytest.approx(first[record.prompt_id], abs=1e-5)


def test_every_sampled_output_is_read_by_the_target(measure: Callable[..., RunFiles]) -> None:
    run = measure("--decoding.top-p", "0.9")
    sampled = [record for record in run.records if record.temperature > 0]
    probes = [probe for probe in run.probes if isinstance(probe, SampledProbe)]
    assert {(probe.method, probe.prompt_id) for probe in probes} == {
        (record.method, record.prompt_id) for record in sampled
    }
    assert sum(probe.n_tokens for probe in probes) == sum(len(record.token_ids) for record in sampled)
    assert all(
        0 < probe.observed < probe.n_tokens and 0 <= probe.variance <= probe.n_tokens / 12 for probe in probes
    )


def test_a_rule_that_takes_what_it_should_not_fails_the_run(
    measure: Callable[..., RunFiles], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accepting every draft, in the engine itself: the check is known to see what it is there for."""
    flags = ["--decoding.temperatures", "1", "--decoding.repeats", "8"]

    def check(*more: str) -> tuple[bool | None, dict[str, float]]:
        run = measure(*flags, *more)
        (found,) = (check for check in run.result.checks if check.name == "sampler")
        tests = sampler_tests(run.records, run.probes)
        return found.passed, {test.row[0]: test.p_value for test in tests if test.what == "tokens"}

    passed, p_values = check()
    assert passed is True
    assert set(p_values) == {"target", "prompt_lookup", "small"}
    monkeypatch.setitem(RULES, "token", partial(lenience, factor=1e-6))
    passed, p_values = check("--overwrite")
    assert passed is False
    assert p_values["small"] < 1e-3 < p_values["target"], "by its tokens, whatever was accepted"
