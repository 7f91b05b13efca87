"""The loop's promises: accumulation is exact, runs resume bit by bit, folders are whole or absent."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from specalign import folders
from specalign.config import write_config
from specalign.errors import UserError
from specalign.models.vocabulary import load_draft_vocabulary
from specalign.training import folder, journal, loop, setup
from specalign.training.checkpoints import list_checkpoints
from specalign.training.config import TrainConfig
from specalign.training.materials import load_materials
from specalign.training.session import train_all

Tiny = Callable[..., TrainConfig]
METHODS = ("untrained", "aligned", "sft", "seqkd", "gkd", "distillspec", "contrastive")


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model.safetensors")


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_leaves_a_student_that_transformers_loads(tiny: Tiny, method: str) -> None:
    config = tiny(method)
    train_all([config])
    model = AutoModelForCausalLM.from_pretrained(config.output)
    assert model.config.num_hidden_layers == 2
    assert len(AutoTokenizer.from_pretrained(config.output)) == 63
    facts = folder.read_provenance(config.output)
    assert facts["status"] == "complete"
    assert facts["steps"] == (0 if method in ("untrained", "aligned") else 4)
    assert [path.name for path in config.output.glob(".*")] == [folders.OURS]


def test_a_trimmed_vocabulary_is_stored_beside_the_full_checkpoint(tiny: Tiny) -> None:
    config = tiny("distillspec", student={"draft_vocabulary": 20})
    train_all([config])
    ids = load_draft_vocabulary(config.output)
    assert ids is not None
    assert len(ids) == 20
    assert AutoModelForCausalLM.from_pretrained(config.output).config.vocab_size == 64


def test_a_student_is_all_that_an_engine_looks_for_and_no_more(tiny: Tiny) -> None:
    """vLLM and SGLang take every safetensors file of the folder for weights."""
    config = tiny("sft", student={"draft_vocabulary": 20})
    train_all([config])
    (file,) = config.output.glob("*.safetensors")
    assert (
        weights(config.output).keys() <= AutoModelForCausalLM.from_pretrained(config.output).state_dict().keys()
    )
    assert file.name == "model.safetensors"
    assert GenerationConfig.from_pretrained(config.output).eos_token_id == 2
    teacher = AutoTokenizer.from_pretrained(config.teacher.model)
    assert AutoTokenizer.from_pretrained(config.output).get_vocab() == teacher.get_vocab()


@pytest.mark.parametrize("method", ["sft", "gkd"])
@pytest.mark.parametrize("vocabulary", [0, 20])
def test_accumulated_gradients_are_those_of_one_big_batch(tiny: Tiny, method: str, vocabulary: int) -> None:
    config = tiny(method, student={"draft_vocabulary": vocabulary})
    materials = load_materials(config)
    materials.teacher.double()
    run = setup.start_run(config, materials)
    run.pair.student.double()
    rows = run.policy.rows(loop.next_prompts(run.prompts, 0, 6, 0), loop.writer(run), run.generator)
    found = {}
    for size in (1, 2, 6):
        run.config = replace(config, optimiser=replace(config.optimiser, batch=size))
        loss, n_tokens, scored = loop.accumulate(run, rows, torch.Generator())
        found[size] = loss, n_tokens, [parameter.grad.clone() for parameter in run.parameters]  # type: ignore
        run.optimiser.zero_grad()
        assert len(scored) == 6 // size
    for size in (1, 2):
        assert found[size][0] == pytest.approx(found[6][0], rel=1e-6)
        assert found[size][1] == found[6][1]
        for ours, theirs in zip(found[size][2], found[6][2], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)


def test_the_same_seed_gives_the_same_student_and_another_seed_another(tiny: Tiny, tmp_path: Path) -> None:
    runs = [tiny("gkd", output=tmp_path / name, seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    train_all(runs[:2])
    train_all(runs[2:])
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert not same(weights(tmp_path / "a"), weights(tmp_path / "c"))


def test_every_method_sees_the_same_prompts_in_the_same_order(tiny: Tiny) -> None:
    materials = load_materials(tiny("gkd"))
    ids = [
        [prompt.id for prompt in loop.next_prompts(setup.usable_data(tiny(method), materials)[0], 0, 30, 5)]
        for method in ("sft", "gkd", "distillspec")
    ]
    assert ids[0] == ids[1] == ids[2]
    assert len(set(ids[0][:12])) == 12  # each epoch shows each prompt once
    assert ids[0][:12] != ids[0][12:24]


def test_an_interrupted_run_goes_on_bit_by_bit(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = tiny("distillspec", output=tmp_path / "a"), tiny("distillspec", output=tmp_path / "b")
    train_all([whole])
    real_step = loop.step

    def step(run: setup.Run) -> journal.StepReport:
        if run.position.step == 3:
            raise KeyboardInterrupt
        return real_step(run)

    monkeypatch.setattr(loop, "step", step)
    with pytest.raises(KeyboardInterrupt):
        train_all([broken])
    assert folder.read_provenance(broken.output)["status"] == "running"
    assert not (broken.output / "config.json").exists()
    monkeypatch.setattr(loop, "step", real_step)
    train_all([broken])
    assert same(weights(whole.output), weights(broken.output))
    steps = [[line["step"] for line in folder.read_log(run.output)] for run in (whole, broken)]
    assert steps[0] == steps[1]


def test_kill_9_loses_nothing(tiny: Tiny, tmp_path: Path) -> None:
    """Each run in a process of its own: the number of threads decides the last bits of sums."""
    whole, killed = (tiny("gkd", output=tmp_path / name, budget={"steps": 12}) for name in "ab")
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(config: TrainConfig) -> subprocess.Popen[bytes]:
        recipe = tmp_path / f"{config.output.name}.toml"
        write_config(recipe, config)
        command = [sys.executable, "-m", "specalign.training", "--recipe", str(recipe)]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, env=one_thread)

    assert start(whole).wait() == 0
    process = start(killed)
    while not list_checkpoints(killed.output) and process.poll() is None:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert start(killed).wait() == 0
    assert same(weights(whole.output), weights(killed.output))
    assert [line["step"] for line in folder.read_log(killed.output)] == [
        line["step"] for line in folder.read_log(whole.output)
    ]


def test_only_the_last_checkpoints_are_kept(tiny: Tiny) -> None:
    config = tiny("sft", budget={"steps": 7}, logging={"checkpoint_every": 1, "keep_checkpoints": 2})
    train_all([config])
    assert [path.name for path in list_checkpoints(config.output)] == ["step-00000006", "step-00000007"]


def test_a_truncated_checkpoint_names_the_older_one(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny("sft")
    monkeypatch.setattr(loop, "finish", lambda *_: None)
    train_all([config])
    state = config.output / "checkpoints" / "step-00000004" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"step-00000004 is damaged .* go on from step-00000002"):
        train_all([config])


def test_an_optimiser_state_of_other_parameters_is_refused(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """As versions wrote it that numbered parameters: it would be left out without a word."""
    config = tiny("sft")
    monkeypatch.setattr(loop, "finish", lambda *_: None)
    train_all([config])
    path = list_checkpoints(config.output)[-1] / "state.safetensors"
    state = load_file(path)
    name = "optimiser.model.norm.weight.exp_avg"
    state["optimiser.7.exp_avg"] = state.pop(name)
    save_file(state, path)
    with pytest.raises(UserError, match=r"state of a parameter '7', .* start again with --overwrite"):
        train_all([config])


def test_a_complete_run_is_left_alone(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny("sft")
    train_all([config])
    before = (config.output / "model.safetensors").stat().st_mtime_ns
    train_all([config])
    assert "complete already" in capsys.readouterr().out
    assert (config.output / "model.safetensors").stat().st_mtime_ns == before
    train_all([replace(config, overwrite=True)])
    assert (config.output / "model.safetensors").stat().st_mtime_ns > before


def test_another_recipe_never_replaces_a_run(tiny: Tiny) -> None:
    train_all([tiny("sft")])
    with pytest.raises(UserError, match=r"holds a run with optimiser.lr = 0.003, not 0.5"):
        train_all([tiny("sft", optimiser={"lr": 0.5})])


def test_overwrite_refuses_a_folder_that_is_no_run(tiny: Tiny) -> None:
    config = tiny("sft", overwrite=True)
    config.output.mkdir()
    (config.output / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="holds files that no run of specalign listed"):
        train_all([config])
    assert (config.output / "thesis.tex").exists()


def test_the_log_line_keeps_its_form(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny("gkd")
    train_all([config])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[step ")]
    assert len(lines) == 4
    pattern = r"\[step \d+\] kd=\d+\.\d{3} agree=[01]\.\d{3} k=[1-4] dt=\d+\.\d+s"
    for line, fields in zip(lines, train_lines(config.output), strict=True):
        assert re.fullmatch(pattern, line)
        assert line.startswith(f"[step {fields['step']}] kd={fields['kd']:.3f} agree={fields['agree']:.3f} ")


def train_lines(run: Path) -> list[dict[str, float]]:
    return [line for line in folder.read_log(run) if line["kind"] == "train"]


def test_training_helps_the_drafter(tiny: Tiny) -> None:
    config = tiny("gkd", student={"start": "slice"}, budget={"steps": 40}, optimiser={"lr": 1e-2})
    train_all([config])
    before, *_, after = (line for line in folder.read_log(config.output) if line["kind"] == "validation")
    assert after["alpha"] > before["alpha"] + 0.05


def test_a_loss_that_is_not_finite_stops_the_run_and_saves_the_batch(tiny: Tiny) -> None:
    config = tiny("sft", optimiser={"lr": 1e30, "max_grad_norm": 0.0})
    with pytest.raises(UserError, match=r"not finite; the batch is in"):
        train_all([config])
    batch = json.loads((config.output / "non_finite_batch.json").read_text())
    assert len(batch["rows"]) == 4


def test_a_student_that_diverges_is_named_by_its_run(tiny: Tiny) -> None:
    config = tiny("gkd", optimiser={"lr": 1e30, "max_grad_norm": 0.0})
    with pytest.raises(UserError, match="its logits are no finite numbers") as caught:
        train_all([config])
    assert f"of '{config.output}'" in str(caught.value)
    assert config.teacher.model not in str(caught.value)


def test_a_budget_of_tokens_or_seconds_ends_the_run(tiny: Tiny) -> None:
    by_tokens = tiny("sft", budget={"steps": 0, "tokens": 60})
    train_all([by_tokens])
    facts = folder.read_provenance(by_tokens.output)
    last = train_lines(by_tokens.output)[-2]["n_tokens"]
    assert last < 60 <= facts["trained_tokens"]
    by_seconds = tiny("sft", output=by_tokens.output.with_name("s"), budget={"steps": 0, "seconds": 0.2})
    train_all([by_seconds])
    assert folder.read_provenance(by_seconds.output)["train_s"] >= 0.2


def test_the_realised_mix_is_logged(tiny: Tiny) -> None:
    config = tiny("distillspec", budget={"steps": 12})
    train_all([config])
    share = folder.read_provenance(config.output)["student_share"]
    assert 0.2 < share < 0.8
    assert train_lines(config.output)[-1]["student_share"] == share


def test_the_probe_decodes_and_is_logged(tiny: Tiny) -> None:
    config = tiny("gkd", logging={"probe_prompts": 2})
    train_all([config])
    found = [line for line in folder.read_log(config.output) if line["kind"] == "validation"]
    assert all(1 <= line["probe_tau"] <= 5 and 0 <= line["probe_alpha"] <= 1 for line in found)


def test_gradient_checkpointing_changes_no_number(tiny: Tiny, tmp_path: Path) -> None:
    train_all([tiny("gkd", output=tmp_path / "a")])
    train_all([tiny("gkd", output=tmp_path / "b", optimiser={"gradient_checkpointing": True})])
    ours, theirs = weights(tmp_path / "a"), weights(tmp_path / "b")
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiling_the_student_changes_numbers_by_rounding_alone(
    tiny: Tiny, tmp_path: Path, checkpointing: bool
) -> None:
    train_all([tiny("gkd", output=tmp_path / "a")])
    torch._dynamo.utils.counters.clear()
    optimiser = {"compile": True, "gradient_checkpointing": checkpointing}
    train_all([tiny("gkd", output=tmp_path / "b", optimiser=optimiser)])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    ours, theirs = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-5)
