"""Heads on the target's states in a suite, beside models and copies: every figure, check and command."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, T5Config, T5ForConditionalGeneration

from specalign.analysis.deploy import HEAD, Wish, deploy_lines, speculative_config
from specalign.benchmarks.calls import REPEATS, _calls, probe_prompts
from specalign.benchmarks.cli import main, parse_run
from specalign.benchmarks.outputs import _Trajectory
from specalign.benchmarks.preflight import findings
from specalign.benchmarks.suite import load_suite, outline_suite
from specalign.decoding import HeadStepper
from specalign.decoding.sampling import Sampling, probabilities
from specalign.decoding.session import Session
from specalign.errors import UserError
from specalign.models.eagle import load_head
from specalign.models.head_fit import origin_as
from specalign.models.load import load_model
from specalign.preflight import Finding
from specalign.probes import CallProbe, ForcedProbe
from specalign.run_files import read_run
from tests.decoding.kinds import tiny_head

Bench = Callable[..., list[str]]


@pytest.fixture(scope="session")
def head_folder(models_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head for the folder ``target``, over some of its ids; without a tokenizer, which it does not need."""
    folder = tmp_path_factory.mktemp("heads") / "head"
    target = AutoModelForCausalLM.from_pretrained(models_folder / "target")
    head = tiny_head(target, (0, 1, 2))
    assert head.config.speculators_config
    head.config.speculators_config["verifier"]["name_or_path"] = str(models_folder / "target")
    head.save_pretrained(folder)
    return folder


def with_head(words: list[str], folder: Path) -> list[str]:
    words[words.index("--drafter") + 1 : words.index("--drafter") + 1] = [f"head={folder}"]
    return words


@pytest.mark.parametrize("runtime", ["eager", "packed", pytest.param("compiled", marks=pytest.mark.slow)])
def test_a_head_has_every_figure_that_a_model_has(
    bench: Bench, head_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], runtime: str
) -> None:
    flags = ["--decoding.adaptive", "--include", "suffix_lookup", "--compose", "fast=suffix_lookup+head"]
    main(with_head(bench("--decoding.runtime", runtime, *flags, drafters=("copy",)), head_folder))
    main(["verify", str(tmp_path / "run")])
    run = read_run(tmp_path / "run")
    assert run.result.n_failed == 0
    rows = {(row.method, row.temperature): row for row in run.result.rows}
    for temperature in (0.0, 1.0):
        for method in ("head", "head_adaptive", "fast"):
            assert rows[method, temperature].n_unexplained_divergences in (0, None)
        row = rows["head", temperature]
        assert row.kind == "model"
        for name in ("c", "alpha_counted", "alpha_teacher_forced", "predicted_speedup"):
            assert getattr(row, name) is not None, name
    assert all(rows[method, 0.0].exact_match_target == 1 for method in ("head", "head_adaptive", "fast"))
    (info,) = (info for info in run.result.drafters if info.name == "head")
    assert (info.reads, info.n_layers, info.draft_vocabulary) == ([0, 1, 2], 1, 30)
    calls = [probe for probe in run.probes if isinstance(probe, CallProbe)]
    timed = {(call.n_tokens, call.n_accepted) for call in calls if call.method == "head"}
    assert timed == {(1, 0), (3, 0), (3, 1), (3, 3)}
    assert {call.n_accepted for call in calls if call.method in ("target", "copy")} == {0}
    assert {probe.method for probe in run.probes if isinstance(probe, ForcedProbe)} >= {"head", "copy"}
    main(["explain", str(tmp_path / "run")])
    assert "first tokens of drafts that decoding examined" in capsys.readouterr().out


def test_teacher_forced_acceptance_is_what_a_draft_after_every_token_has(
    bench: Bench, head_folder: Path
) -> None:
    """Also of an output after a single token, whose first position has no draft."""
    suite = load_suite(parse_run(with_head(bench(drafters=("copy",)), head_folder)[1:]))
    drafter, output, sampling = suite.drafters["head"], [5, 9, 31, 7], Sampling(1.0)
    assert drafter
    for prompt in ([5, 9, 31], [7]):
        found = _Trajectory(suite, prompt, output, sampling).overlap(drafter)
        assert (found[0] is None) == (len(prompt) == 1)
        with torch.inference_mode():
            session = Session.start(suite.target, [prompt], 8, reads=drafter.reads)
            drafting = drafter.start([prompt], 8, sampling, session)
            for place, token in enumerate(output):
                text = [*prompt, *output[:place]]
                draft = drafting.draft([text], [1], torch.Generator())
                p = probabilities(session.extend(torch.tensor([[text[-1]]]))[0, 0], sampling)
                if draft.counts[0]:
                    assert draft.q is not None
                    assert found[place] == pytest.approx(float(torch.minimum(p, draft.q[0, 0]).sum()), abs=1e-5)
                assert token == output[place]


def test_the_check_says_what_it_reads_and_was_trained_for(
    bench: Bench, head_folder: Path, models_folder: Path
) -> None:
    words = with_head(bench(drafters=("copy",)), head_folder)[1:]
    found = {finding.check: finding for finding in findings(parse_run(words), data=False)}
    assert {finding.verdict for finding in found.values()} <= {"ok", "note"}
    assert found["head: fits the target"].detail == "states 0, 1, 2 of 2 layers, 30 of its ids"
    assert found["head: trained for"].verdict == "ok"
    assert "all keys and shapes" in found["head: weights"].detail
    other = [*words, "--target.model", str(models_folder / "copy")]
    found = {finding.check: finding for finding in findings(parse_run(other), data=False)}
    assert found["head: trained for"].verdict == "note"
    assert "may mean something else" in found["head: trained for"].detail


def test_targets_that_it_does_not_fit_are_one_line(
    bench: Bench, head_folder: Path, models_folder: Path, tmp_path: Path
) -> None:
    t5 = tmp_path / "t5"
    AutoTokenizer.from_pretrained(models_folder / "target").save_pretrained(t5)
    sizes: dict[str, Any] = {
        "vocab_size": 64,
        "d_model": 16,
        "d_kv": 8,
        "d_ff": 8,
        "num_layers": 1,
        "num_heads": 1,
    }
    T5ForConditionalGeneration(T5Config(**sizes)).save_pretrained(t5)
    words = with_head(bench("--decoding.runtime", "eager", drafters=("copy",)), head_folder)
    place = next(n for n, word in enumerate(words) if word.startswith("copy="))
    del words[place]
    with pytest.raises(UserError, match=r"drafter 'head': EagleHead .*: heads read the states of decoder-only"):
        main([*words, "--target.model", str(t5)])
    wide = load_head(str(head_folder))
    wide.config.target_hidden_size = 32
    wide.config.save_pretrained(tmp_path / "wide")
    config = parse_run([word.replace(str(head_folder), str(tmp_path / "wide")) for word in words[1:]])
    found = {finding.check: finding for finding in findings(config, data=False)}
    assert found["head: fits the target"].verdict == found["head: weights"].verdict == "failed"
    assert "states of 32 numbers, the target's have 16" in found["head: fits the target"].detail


def test_a_timed_draft_enters_what_was_accepted_before_it(
    bench: Bench, head_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After drafts of which none, one and all three were accepted, as in decoding: with a call of that many entries."""
    config = parse_run(with_head(bench(drafters=("copy",)), head_folder)[1:])
    suite = load_suite(config)
    fed: list[tuple[int, bool]] = []
    plain = HeadStepper.__call__

    def noted(self: HeadStepper, ids: torch.Tensor, *rest: Any, true: bool) -> Any:
        fed.append((ids.shape[1], true))
        return plain(self, ids, *rest, true=true)

    monkeypatch.setattr(HeadStepper, "__call__", noted)
    prompt = probe_prompts(suite, config)[-1]
    timed = set()
    with torch.inference_mode():
        for call in [call for call in _calls(suite, config, prompt) if call.method == "head"]:
            for _ in range(REPEATS):
                assert call.before
                call.before()
                fed.clear()
                call.make()
                assert fed == [(call.n_accepted + 1, True)] + [(1, False)] * (call.n_tokens - 1)
            timed.add((call.n_tokens, call.n_accepted))
    assert timed == {(1, 0), (3, 0), (3, 1), (3, 3)}


def told_of(folder: Path, target: Path, **changes: Any) -> None:
    """Let a head's folder tell which target it is for, as training does."""
    origin = asdict(origin_as(load_model(str(target)))) | changes
    (folder / "provenance.json").write_text(json.dumps({"target": origin}))


def test_a_head_for_a_target_of_another_depth_or_with_other_weights_is_told_apart(
    bench: Bench, head_folder: Path, models_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = tmp_path / "ours"
    shutil.copytree(head_folder, ours)
    config = parse_run(with_head(bench(drafters=("copy",)), ours)[1:])

    def fits() -> Finding:
        return next(each for each in findings(config, data=False) if each.check == "head: fits the target")

    told_of(ours, models_folder / "copy")  # the target's own weights elsewhere
    assert fits().verdict == "ok"
    load_suite(config)
    assert "is a head for a target" not in capsys.readouterr().out
    told_of(ours, models_folder / "copy", fingerprint=[1.0] * 9)
    assert fits().verdict == "ok"
    load_suite(config)
    assert "drafter 'head' is a head for a target with other logits" in capsys.readouterr().out
    told_of(ours, models_folder / "small")
    assert fits().verdict == "failed"
    with pytest.raises(UserError, match="trained for a target of 1 layers, this one has 2"):
        load_suite(config)
    (ours / "provenance.json").write_text('{"target": {"layers": 2}}')
    assert "does not say which target the head is for" in fits().detail


def test_another_head_is_not_taken_for_the_one_that_a_run_began_with(
    bench: Bench, head_folder: Path, tmp_path: Path
) -> None:
    """The same weights under another config: its logits are in the run's provenance, as a model's are."""
    head, words = tmp_path / "changing", bench(drafters=("copy",))
    shutil.copytree(head_folder, head)
    main(with_head(words, head))
    result = tmp_path / "run" / "result.json"
    written = json.loads(result.read_text())
    assert set(written["provenance"]["fingerprints"]) == {"target", "copy", "head"}
    result.write_text(json.dumps(written | {"status": "interrupted"}))
    changed = json.loads((head / "config.json").read_text())
    changed["transformer_layer_config"]["rms_norm_eps"] = 0.5
    (head / "config.json").write_text(json.dumps(changed))
    with pytest.raises(UserError, match="begun with another model as head"):
        main(words)


def test_vllm_is_told_that_it_is_a_head(bench: Bench, head_folder: Path, tmp_path: Path) -> None:
    main(with_head(bench(drafters=("copy",)), head_folder))
    result = read_run(tmp_path / "run").result
    (command,) = (line for line in deploy_lines(result, Wish(drafter="head")) if "--speculative-config" in line)
    config = json.loads(command.split("'")[1])
    assert config == speculative_config(HEAD, 3, str(head_folder))
    assert config["method"] == "eagle3"
    assert not [line for line in deploy_lines(result, Wish(drafter="head")) if "export" in line]
    suite = outline_suite(parse_run(with_head(bench(drafters=("copy",)), head_folder)[1:]))
    drafter = suite.drafters["head"]
    assert drafter
    assert drafter.reads == (0, 1, 2)
