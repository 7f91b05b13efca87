"""The command: instant help, one line and exit code 2 for a user's mistake, 130 for Ctrl-C."""

import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from specalign.config import write_config
from specalign.errors import UserError, run_cli
from specalign.training.cli import main
from specalign.training.config import TrainConfig

Tiny = Callable[..., TrainConfig]


@pytest.fixture
def fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a config with flags; expects exit code 2 and returns the one line that is printed."""

    def run(config: TrainConfig, *words: str) -> str:
        recipe = tmp_path / "recipe.toml"
        write_config(recipe, config)
        code = run_cli("specalign-train", lambda: main(["--recipe", str(recipe), *words]))
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert code == 2
        assert line.startswith("specalign-train: error: ")
        return line

    return run


def test_help_is_instant() -> None:
    begun = time.monotonic()
    code = (
        "import sys\nfrom specalign.training.cli import main\n"
        "try:\n    main(['--help'])\nfinally:\n    print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--rollout.k-max" in done.stdout
    assert done.stdout.strip().endswith("False")
    assert time.monotonic() - begun < 10  # on a loaded machine; about half a second on an idle one


def test_an_unknown_recipe_key(tiny: Tiny, fails: Callable[..., str], tmp_path: Path) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_text("[rollout]\nkmax = 3\n")
    line = fails(tiny(), "--recipe", str(bad))
    assert "unknown key 'rollout.kmax'; did you mean 'rollout.k_max'" in line


def test_an_unknown_method(tiny: Tiny, fails: Callable[..., str]) -> None:
    assert "'gkdd'" in fails(tiny(), "--method", "gkdd")


def test_another_tokenizer(tiny: Tiny, fails: Callable[..., str], teacher_folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    tokenizer = AutoTokenizer.from_pretrained(teacher_folder)
    raw = json.loads(tokenizer.backend_tokenizer.to_str())
    raw["model"]["vocab"] = {word: 62 - id_ for word, id_ in raw["model"]["vocab"].items()}
    raw["added_tokens"] = []
    tokenizer.save_pretrained(other)
    (other / "tokenizer.json").write_text(json.dumps(raw))
    (other / "config.json").write_text((teacher_folder / "config.json").read_text())
    line = fails(tiny(student={"model": str(other)}))
    assert "different tokenizers: id 0 is" in line


def test_empty_data(tiny: Tiny, fails: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    assert "is empty" in fails(tiny(), "--data.source", str(tmp_path / "empty.jsonl"))


def test_a_missing_column(tiny: Tiny, fails: Callable[..., str]) -> None:
    assert "no column 'article' (columns: document, reference)" in fails(tiny(), "--data.document", "article")


def test_no_references(tiny: Tiny, fails: Callable[..., str], tmp_path: Path) -> None:
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text(f'{{"document": "w1 w2 {split}"}}\n')
    assert "has no references" in fails(tiny("sft", data={"source": str(tmp_path)}))


def test_a_device_that_is_not_there(tiny: Tiny, fails: Callable[..., str]) -> None:
    assert "device 'cuda:7' asked for" in fails(tiny(), "--device", "cuda:7")


def test_an_output_that_exists(tiny: Tiny, fails: Callable[..., str]) -> None:
    config = tiny()
    config.output.mkdir()
    (config.output / "notes.txt").write_text("mine")
    assert "is not a training run; choose another --output" in fails(config)


def test_a_prompt_that_does_not_fit(tiny: Tiny, fails: Callable[..., str]) -> None:
    assert "exceed the teacher's context of 64" in fails(tiny(), "--data.max-response-tokens", "60")


def test_ctrl_c_is_130_and_a_rerun_goes_on(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from specalign.training import loop

    config = tiny("sft")
    recipe = tmp_path / "recipe.toml"
    write_config(recipe, config)

    def run() -> int:
        return run_cli("specalign-train", lambda: main(["--recipe", str(recipe)]))

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "finish", interrupt)
        assert run() == 130
    assert run() == 0
    assert "resuming after step 4" in capsys.readouterr().out


def test_compare_trains_each_into_its_folder(tiny: Tiny, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    write_config(recipe, tiny("gkd", output=tmp_path / "all"))
    text = recipe.read_text().split("[rollout]")[0]  # what a comparison shares: no method's own settings
    recipe.write_text(text.replace('method = "gkd"\n', "") + "[budget]\nsteps = 2\n")
    assert (
        run_cli("t", lambda: main(["--recipe", str(recipe), "--compare", "untrained", "aligned", "sft"])) == 0
    )
    folders = sorted(path.name for path in (tmp_path / "all").iterdir())
    assert folders == ["aligned", "comparison", "sft", "untrained"]
    assert all((tmp_path / "all" / name / "config.json").is_file() for name in ("aligned", "sft", "untrained"))


def test_plot_draws_the_curves(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    from specalign.training.session import train_all

    config = tiny("sft")
    train_all([config])
    main(["plot", str(config.output)])
    assert (config.output / "train.png").read_bytes().startswith(b"\x89PNG")


def test_plan_counts_what_the_models_have(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForCausalLM

    from specalign.training.plan import largest_batch, make_plan

    config = tiny("gkd")
    plan = make_plan(config)
    teacher = AutoModelForCausalLM.from_pretrained(config.teacher.model)
    assert plan.teacher_parameters == teacher.num_parameters()
    assert plan.lasting == sum((plan.weights, plan.copies, plan.gradients, plan.optimiser))
    assert plan.total == plan.lasting + plan.activations + plan.logits
    assert largest_batch(config, plan, plan.total) == config.optimiser.batch
    recipe = tmp_path / "recipe.toml"
    write_config(recipe, config)
    main(["plan", "--recipe", str(recipe)])
    assert "optimiser.batch up to about" in capsys.readouterr().out
    main(["plan", "--recipe", str(recipe), "--memory-gib", "24", "--tflops=60"])
    shown = capsys.readouterr().out
    assert "with 24.0 GiB: optimiser.batch up to about" in shown
    assert f"at 60 TFLOP/s at most {60e12 / plan.flops_per_token:,.0f} trained tokens per second" in shown
    with pytest.raises(UserError, match="--tflops must be positive, not -1"):
        main(["plan", "--recipe", str(recipe), "--tflops=-1"])
    with pytest.raises(UserError, match="--memory-gib: invalid float value: 'much'"):
        main(["plan", "--recipe", str(recipe), "--memory-gib", "much"])


def test_plan_counts_what_a_run_keeps_beside_its_models(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """The start of the student, autocast's copies of its weights, and the caches of its rollouts."""
    from specalign.training import plan as planning

    full, seqkd = (planning.make_plan(tiny(name)) for name in ("distillspec", "seqkd"))
    assert full.copies == 4 * full.student_parameters
    keys_and_values = 2 * 2 * 1 * 8  # of two layers with one head of 8
    assert full.rollouts == 4 * (16 + 6) * keys_and_values * 4  # four prompts of 16 + 6 tokens, float32
    assert seqkd.rollouts == 0
    forks = planning.make_plan(tiny("gkd"))
    assert (
        forks.rollouts == 3 * 4 * (16 + 6 + 4) * keys_and_values * 4
    )  # three branches each, of up to four tokens
    half = planning.make_plan(tiny("distillspec", optimiser={"precision": "bfloat16"}))
    assert half.copies == 6 * half.student_parameters
    assert half.rollouts == full.rollouts // 2
    crowded = dataclasses.replace(full, rollouts=2**40)
    assert planning.largest_batch(tiny("distillspec"), crowded, 2**39) == 0


def test_plan_says_what_a_released_teacher_leaves(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    from specalign.training.plan import make_plan, print_plan

    teacher = {"reuse_states": True, "offload": "after-states"}
    stays = make_plan(tiny("seqkd", teacher={"reuse_states": True}))
    leaves = make_plan(tiny("seqkd", teacher=teacher))
    assert (stays.released, stays.scoring) == (0, 0)
    head = 64 * 16
    assert leaves.released == stays.weights - leaves.weights == 4 * (stays.teacher_parameters - head)
    assert leaves.scoring == 4 * (stays.teacher_parameters + stays.student_parameters)
    longest = 6 * 16 * 4  # tokens, numbers, bytes
    assert leaves.states == stays.states == (4 * 2 * 2 + 32) * longest
    assert make_plan(tiny("seqkd")).states == 0
    by_prompts = tiny("seqkd", teacher=teacher, data={"n_train": 3, "n_test": 2})
    assert make_plan(by_prompts).states == (3 + 2 + 32) * longest
    by_tokens = tiny("seqkd", teacher=teacher, budget={"steps": 0, "tokens": 12})
    assert make_plan(by_tokens).states == 12 * 16 * 4 + (4 + 32) * longest
    by_time = tiny("seqkd", teacher={**teacher, "reuse_gib": 0.25}, budget={"steps": 0, "seconds": 1.0})
    assert make_plan(by_time).states == 2**28
    print_plan(by_time)
    shown = capsys.readouterr().out
    assert "the teacher's states: up to 0.25 GiB in main memory" in shown
    assert "of the teacher are given back" in shown


def test_plan_divides_what_the_processes_do(tiny: Tiny) -> None:
    from specalign.training.plan import make_plan

    alone, moments, weights = (
        make_plan(tiny(optimiser={"sharded": sharded}), processes)
        for sharded, processes in (("none", 8), ("moments", 4), ("weights", 4))
    )
    assert alone == make_plan(tiny())
    assert (moments.weights, moments.gradients) == (alone.weights, alone.gradients)
    assert moments.optimiser == alone.optimiser // 4
    ends = 2 * 64 * 16  # embedding and head stay whole
    layers = alone.student_parameters - ends
    assert weights.gradients == 4 * (ends + layers // 4)
    assert weights.optimiser == 2 * weights.gradients
    assert alone.weights - weights.weights == pytest.approx(4 * layers * 3 / 4, abs=4)


def test_planned_arithmetic_is_that_of_the_passes(tiny: Tiny) -> None:
    from specalign.training.plan import make_plan

    head = 64 * 16  # ids x hidden size; tiny's prompts have 16 tokens, its responses 6
    seqkd = make_plan(tiny("seqkd"))
    student, teacher = (n - 2 * head for n in (seqkd.student_parameters, seqkd.teacher_parameters))
    assert seqkd.flops_per_token == pytest.approx(6 * (22 * student + 6 * head) / 6)
    scored = make_plan(tiny("distillspec", rollout={"source": "student"}))
    expected = (8 * (22 * student + 6 * head) + 2 * (22 * teacher + 6 * head)) / 6
    assert scored.flops_per_token == pytest.approx(expected)
    masks = 0.5 + 0.25 + 0.2  # beside each token: their share falls to the floor
    masked = make_plan(tiny("seqkd", student={"parallel": 4, "parallel_keep": 0.5, "parallel_floor": 0.2}))
    more = 6 * masks * (student + head)
    assert masked.flops_per_token == pytest.approx(seqkd.flops_per_token + more)
    assert masked.activations == pytest.approx(seqkd.activations * (22 + 6 * masks) / 22, rel=0.01)
