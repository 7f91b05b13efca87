"""The real vLLM serves what training and export leave, and draws and accepts as our engine does: make test-vllm."""

from __future__ import annotations

import json
import os
import shutil
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from bench_served import own

from specalign.analysis.deploy import HEAD, speculative_config
from specalign.benchmarks.cli import parse_run
from specalign.benchmarks.runner import run
from specalign.benchmarks.selftest import chi_square
from specalign.benchmarks.served import run_served
from specalign.benchmarks.suite import load_prompts
from specalign.decoding import EagleDrafter, generate
from specalign.errors import UserError
from specalign.models.eagle import load_head
from specalign.models.load import load_model, load_tokenizer
from specalign.results import BenchmarkResult, Interval, SummaryRow
from specalign.serving.client import Request, Server, complete
from specalign.serving.environment import PYTHON_VARIABLE
from specalign.serving.server import model_arguments, require_vllm, serving
from specalign.training.cli import configs
from specalign.training.materials import load_materials
from tests.serving import pairs

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

METHODS = ["head", "parallel", "trimmed", "narrow", "wide"]
EAGER = "--enforce-eager"
N_NEW = 32
N_SAMPLES, N_TOKENS = 2000, 3
PROMPT = [4, 9, 31, 7]


@pytest.fixture(scope="module")
def python() -> str:
    if PYTHON_VARIABLE not in os.environ:
        pytest.fail(f"{PYTHON_VARIABLE} names no Python with vLLM; make test-vllm sets it")
    return os.environ[PYTHON_VARIABLE]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What :func:`pairs.make_pairs` makes, prompts.jsonl, and all_rows: the trimmed drafter with its full head."""
    folder = tmp_path_factory.mktemp("pairs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPECALIGN_CACHE", str(folder / "cache"))
        pairs.make_pairs(folder)
        pairs.write_rows(folder / "prompts.jsonl", range(140, 160))
        shutil.copytree(folder / "trimmed", folder / "all_rows")
        shutil.rmtree(folder / "all_rows" / "draft_vocabulary")
        yield folder


def suite(root: Path, drafters: dict[str, Path], *more: str) -> list[str]:
    data = f"--data.source {root}/prompts.jsonl --data.split all --target.model {root}/target --target.dtype float32"
    decoding = f"--decoding.gammas 3 --decoding.max-new-tokens {N_NEW} --include --device cpu"
    named = [f"{name}={folder}" for name, folder in drafters.items()]
    return [*data.split(), *decoding.split(), "--data.prompt", pairs.PROMPT, *more, "--drafter", *named]


@pytest.fixture(scope="module")
def vllm(python: str, root: Path) -> BenchmarkResult:
    """Greedily and at temperature 1, of what is exported where that is needed."""
    drafters = {name: pairs.served(root, name) for name in METHODS}
    how = ["--engine", "vllm", f"--engine-arguments={EAGER}", "--engine-python", python]
    return run_served(
        parse_run(suite(root, drafters, *how, "--decoding.temperatures", "0", "1", "--output", f"{root}/vllm"))
    )


@pytest.fixture(scope="module")
def sampled(root: Path) -> BenchmarkResult:
    """At temperature 1 by our engine, of what training left."""
    how = ["--decoding.runtime", "eager", "--decoding.temperatures", "1", "--output", f"{root}/own"]
    return run(parse_run(suite(root, {name: root / name for name in METHODS}, *how)))


@pytest.fixture(scope="module")
def greedy(root: Path) -> Callable[[str], float]:
    """greedy("head") -> its acceptance by our engine, of the drafts that vLLM counts."""
    target = load_model(f"{root}/target")
    prompts = load_prompts(parse_run(suite(root, {"head": root / "head"})), load_tokenizer(f"{root}/target"))
    how = Namespace(temperature=0.0, repeats=1, tokens=N_NEW, gamma=3)
    ids = [list(prompt.input_ids) for prompt in prompts]
    return lambda name: own(target, ids, f"{root}/{name}", how)[0].alpha


def drafted(result: BenchmarkResult, method: str, temperature: float = 0.0) -> SummaryRow:
    (row,) = (row for row in result.rows if (row.method, row.temperature) == (method, temperature))
    return row


def alpha(result: BenchmarkResult, method: str, temperature: float = 0.0) -> Interval:
    found = drafted(result, method, temperature).alpha_counted
    assert found is not None
    return found


@pytest.mark.parametrize("method", METHODS)
def test_greedy_outputs_are_the_plain_targets(vllm: BenchmarkResult, method: str) -> None:
    row = drafted(vllm, method)
    assert row.n_effective == 20
    assert row.n_unexplained_divergences == 0
    checks = {check.name: check.passed for check in vllm.checks}
    assert checks["token accounting"]
    assert checks["samples"]


@pytest.mark.parametrize("method", METHODS)
def test_greedy_acceptance_is_ours(vllm: BenchmarkResult, greedy: Callable[[str], float], method: str) -> None:
    assert 0.1 < greedy(method) < 0.9
    assert abs(alpha(vllm, method).value - greedy(method)) <= 0.01


def test_rows_that_were_never_trained_would_win_without_an_export(greedy: Callable[[str], float]) -> None:
    """So that the trimmed drafter's acceptance above is the export's doing."""
    assert greedy("trimmed") - greedy("all_rows") > 0.05


@pytest.mark.parametrize("method", METHODS)
def test_sampled_acceptance_is_ours_within_its_noise(
    vllm: BenchmarkResult, sampled: BenchmarkResult, method: str
) -> None:
    """Both 95 % intervals, over prompts, as normal ones: their difference within three standard errors."""
    ours, theirs = (alpha(result, method, 1.0) for result in (sampled, vllm))
    errors = [((each.high or 0) - (each.low or 0)) / (2 * 1.96) for each in (ours, theirs)]
    assert 0 < max(errors) < 0.05
    assert abs(ours.value - theirs.value) <= 3 * sum(error**2 for error in errors) ** 0.5


def test_a_drafter_of_another_width_is_refused_as_it_is(python: str, root: Path) -> None:
    words = [*model_arguments(f"{root}/target", "target", "float32", trust_remote_code=False), EAGER]
    words += ["--speculative-config", json.dumps(speculative_config("model", 3, f"{root}/narrow"))]
    with (
        pytest.raises(UserError, match=r"vLLM did not start: .*vocab"),
        serving(python, words, root / "refused.log"),
    ):
        pass


def exact(target: torch.nn.Module) -> dict[tuple[int, ...], float]:
    """Probability of every three tokens after PROMPT, given that none of the first two ends the text."""

    @torch.inference_mode()
    def after(texts: torch.Tensor) -> torch.Tensor:
        rows = torch.cat([torch.tensor(PROMPT).expand(len(texts), -1), texts], dim=1)
        return target(input_ids=rows).logits[:, -1].double().softmax(-1)

    ids = torch.arange(72)
    joint = after(ids[:1, None][:, :0])[0]
    for n in range(1, N_TOKENS):
        texts = torch.cartesian_prod(*[ids] * n).reshape(-1, n)
        joint = (joint * (texts[:, -1] != 2))[:, None] * after(texts)
        joint = joint.flatten()
    every = torch.cartesian_prod(*[ids] * N_TOKENS).tolist()
    return dict(zip(map(tuple, every), (joint / joint.sum()).tolist(), strict=True))


def test_what_vllm_samples_follows_the_target_and_a_lenient_rule_would_be_seen(python: str, root: Path) -> None:
    """Its verification at temperature 1 is the strict one, of Leviathan et al.: by a chi-square test."""
    target = load_model(f"{root}/target")
    joint = exact(target)
    words = [*model_arguments(f"{root}/target", "target", "float32", trust_remote_code=False), EAGER]
    words += ["--speculative-config", json.dumps(speculative_config(HEAD, 2, f"{root}/head"))]
    with serving(python, words, root / "sampled.log") as server, ThreadPoolExecutor(32) as pool:
        texts = list(pool.map(lambda seed: draw(server, seed), range(N_SAMPLES)))
    counts = Counter(text for text in texts if len(text) == N_TOKENS)
    assert counts.total() > 0.9 * N_SAMPLES
    assert chi_square(counts, joint) > 1e-3
    lenient = generate(
        target, EagleDrafter(load_head(f"{root}/head")), [PROMPT] * N_SAMPLES, gamma=2, temperature=1.0,
        max_new_tokens=N_TOKENS, rule="lenience", generator=torch.Generator().manual_seed(0), eos=(2,),
    )  # fmt: skip
    wrong = Counter(text for text in map(tuple, lenient.token_ids) if len(text) == N_TOKENS)
    assert chi_square(wrong, joint) < 1e-6


def draw(server: Server, seed: int) -> tuple[int, ...]:
    return tuple(complete(server, Request(PROMPT, N_TOKENS, 1.0, seed=seed)).token_ids)


def test_a_missing_model_is_one_clear_line(python: str, tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match=r"vLLM did not start: .+") as told,
        serving(python, ["--model", str(tmp_path / "missing")], tmp_path / "log"),
    ):
        pass
    assert "\n" not in str(told.value)


def test_the_environment_has_a_vllm_that_is_new_enough(python: str) -> None:
    assert require_vllm(python).startswith("0.")


def test_the_teachers_responses_are_our_own_engines(
    python: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPECALIGN_CACHE", str(tmp_path))
    words = f"--method seqkd {pairs.TRAINED} --teacher.model {root}/target --data.source {root}/data"
    rest = ["--data.prompt", pairs.PROMPT, "--output", str(tmp_path / "run")]
    vllm = ["--rollout-engine", "vllm", "--engine-python", python, f"--engine-arguments={EAGER}"]
    ours, theirs = (
        load_materials(configs([*words.split(), *rest, *more])[0]).responses("train") for more in ([], vllm)
    )
    same = sum(ours[name] == theirs[name] for name in ours)
    assert same >= len(ours) - 1  # rounding may turn one at a tie
