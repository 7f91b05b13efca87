"""The teacher's responses from a vLLM server: the same texts in the same cache, or one clear line."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest
import torch

from specalign.errors import UserError
from specalign.serving.environment import PYTHON_VARIABLE
from specalign.training import served
from specalign.training.cli import configs
from specalign.training.config import TrainConfig
from specalign.training.materials import load_materials
from specalign.training.session import train_all
from tests.serving.conftest import Serve
from tests.serving.fake_vllm import Fake, following

Make = Callable[..., TrainConfig]


@pytest.fixture
def make(suite_flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """make("--endpoint", url) -> a run on the teacher's responses, four prompts, responses of five tokens."""
    monkeypatch.setenv("SPECALIGN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(PYTHON_VARIABLE, raising=False)
    model, data = (suite_flags[suite_flags.index(flag) + 1] for flag in ("--target.model", "--data.source"))
    folder = tmp_path / "data"
    folder.mkdir()
    rows = Path(data).read_text().splitlines(keepends=True)
    for split, own in (("train", rows[:-1]), ("validation", rows[-1:])):
        (folder / f"{split}.jsonl").write_text("".join(own))
    words = f"""--method seqkd --teacher.model {model} --student.model {model} --data.source {folder} --device cpu
        --data.max-prompt-tokens 16 --data.max-response-tokens 5 --budget.steps 2 --output {tmp_path / "run"}"""

    def config(*more: str) -> TrainConfig:
        (made,) = configs([*words.split(), "--data.prompt", "w1 {document}", *more])
        return made

    return config


def expected(prompt: tuple[int, ...]) -> tuple[int, ...]:
    ids = [following(prompt[-1])]
    while len(ids) < 5:
        ids.append(following(ids[-1]))
    return tuple(ids)


def test_a_running_server_writes_the_responses_once(make: Make, serve: Serve) -> None:
    fake = Fake()
    config = make("--rollout-engine", "vllm", "--endpoint", serve(fake))
    materials = load_materials(config)
    responses = materials.responses("train")
    assert responses == {prompt.id: expected(prompt.input_ids) for prompt in materials.train}
    assert fake.ends == [[2]] * len(responses)
    gone = make("--rollout-engine", "vllm", "--endpoint", "http://127.0.0.1:9")
    assert load_materials(gone).responses("train") == responses  # from the cache: no server is asked
    assert load_materials(make()).responses("train") != responses  # our own engine's are others


def test_a_server_is_started_for_a_run_and_ended(
    make: Make, vllm_python: Callable[[str], str], tmp_path: Path
) -> None:
    config = make("--rollout-engine", "vllm", "--engine-python", vllm_python("0.32.0"))
    train_all([config])
    assert (config.output / "model.safetensors").exists()
    assert list((tmp_path / "cache" / "responses").glob("*.vllm.log"))
    running = subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, text=True, check=True).stdout
    assert not any("fake_vllm.py" in line and config.teacher.model in line for line in running.splitlines())


def test_a_server_takes_what_the_loaded_teacher_leaves(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM refuses to start where less is free than the share that it is told, nine tenths of all by default."""
    gpu, asked = torch.device("cuda"), ("--rollout-engine", "vllm")
    monkeypatch.setattr(served, "resolve_device", lambda name: gpu)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (60 * 2**30, 80 * 2**30))
    (flag, share) = served.memory_share(make(*asked))
    assert flag == "--gpu-memory-utilization"
    assert 0.5 < float(share) < 60 / 80
    own = "--engine-arguments=--gpu-memory-utilization 0.3"
    assert served.memory_share(make(*asked, own)) == []
    monkeypatch.setattr(served, "resolve_device", lambda name: torch.device("cpu"))
    assert served.memory_share(make(*asked)) == []


def test_the_teachers_code_is_trusted_by_the_server_where_it_is_by_us(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[bool] = []

    def serving(_python: str, words: list[str], _log: Path) -> AbstractContextManager[None]:
        told.append("--trust-remote-code" in words)
        return nullcontext()

    monkeypatch.setattr(served, "serving", serving)
    for more in ([], ["--teacher.trust-remote-code"]):
        with served._serving(
            make("--rollout-engine", "vllm", "--engine-python", "python", *more), tmp_path / "log"
        ):
            pass
    assert told == [False, True]


def test_a_server_with_another_tokenizer_is_refused(make: Make, serve: Serve) -> None:
    config = make("--rollout-engine", "vllm", "--endpoint", serve(Fake(offset=2)))
    with pytest.raises(UserError, match="does it serve that model"):
        load_materials(config).responses("train")


def test_a_failing_server_is_one_clear_line(make: Make, serve: Serve) -> None:
    fake = Fake()
    config = make("--rollout-engine", "vllm", "--endpoint", serve(fake))
    materials = load_materials(config)
    fake.refused = materials.train[2].input_ids[-1]
    with pytest.raises(UserError, match=r"the teacher's server failed: .* answered 400"):
        materials.responses("train")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--rollout-engine", "vllm"], "name vLLM's Python by --engine-python"),
        (["--rollout-engine", "vllm", "--endpoint", "http://127.0.0.1:9"], "no server answers"),
        (["--rollout-engine", "vllm", "--teacher.quantization", "4bit"], "set teacher.quantization = none"),
        (["--endpoint", "http://127.0.0.1:9"], "are for engine.name = vllm"),
    ],
)
def test_what_cannot_work_is_said_before_a_model_is_loaded(make: Make, flags: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        train_all([make(*flags)])
