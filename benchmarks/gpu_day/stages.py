"""What each stage of a GPU day runs: commands of at most eight minutes together, one after the other."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path("benchmarks/gpu_day")


@dataclass(frozen=True)
class Day:
    """Where and how large."""

    device: str
    work: Path
    """Folder of models, runs and results; a stage's own results lie in work/STAGE."""
    tiny: bool = False
    """Sizes for a test on a CPU: every command, nothing to learn."""
    train_s: int = 200
    """Seconds of training an arm of the study gets."""

    def folder(self, stage: str) -> Path:
        """A stage's results."""
        return self.work / stage

    @property
    def teacher(self) -> str:
        """The name of the study's teacher."""
        return str(self.work / "models/tiny") if self.tiny else "builtin:smollm2"


@dataclass(frozen=True)
class Command:
    """One process."""

    name: str
    words: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    result: Path | None = None
    """A file that says whether bars were met: exit code 1 beside it is a result too."""

    def place(self, day: Day, stage: str) -> Path:
        """Where its log and marker lie: models are made once for all stages."""
        return day.folder("models" if self.name.startswith("make_") else stage)


def python(*words: object) -> list[str]:
    """The Python that runs this."""
    return [sys.executable, *map(str, words)]


def bench(*words: object) -> list[str]:
    """specalign-bench, from the checkout."""
    return python("-m", "specalign.benchmarks", *words)


def models(*words: object) -> list[str]:
    """Models that the stages make for themselves."""
    return python(HERE / "models.py", *words)


def selftest(day: Day) -> list[Command]:
    """The engine proves itself on this device; the tests that need one."""
    tests = sorted(path.relative_to(ROOT) for path in (ROOT / "tests").glob("*/test_gpu.py"))
    options = ["--no-compiled"] if day.tiny else []
    return [
        Command("selftest", bench("selftest", "--device", day.device, *options)),
        Command("gpu_tests", python("-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", *tests)),
    ]


def decoding(day: Day) -> list[Command]:
    """One call of n tokens under each runtime, and the decoding loop against its bars, for SmolLM2."""
    return [*_start(day), *_decoding(day, day.teacher, str(day.work / "models/slice"), day.folder("decoding"))]


def losses(day: Day) -> list[Command]:
    """Every objective at Qwen2.5's vocabulary: memory and time of the chunked form against whole logits."""
    sizes = {"BENCH_POSITIONS": "16", "BENCH_ROUNDS": "1", "BENCH_VOCABULARY": "500"} if day.tiny else {}
    words = python("-m", "pytest", "benchmarks/bench_losses.py", "-q", "-p", "no:cacheprovider")
    words += ["-k", "jsd and not trl"] if day.tiny else ["-k", "not trl"]
    return [
        Command(
            f"losses_{dtype}",
            [*words, "--benchmark-json", str(day.folder("losses") / f"losses_{dtype}.json")],
            {"BENCH_DEVICE": day.device, "BENCH_DTYPE": dtype, **sizes},
        )
        for dtype in (["bfloat16"] if day.tiny else ["bfloat16", "float32"])
    ]


def training(day: Day) -> list[Command]:
    """Training steps on policy: SmolLM2's, and Qwen2.5's sizes with random weights."""
    options = ["--batch", 2, "--new-tokens", 4, "--prompt-tokens", 16, "--steps", 2] if day.tiny else ["--qwen"]
    words = python("benchmarks/bench_training.py", "--teacher", day.teacher, "--device", day.device, *options)
    result = day.folder("training") / "training.json"
    return [
        *_start(day),
        Command("training", [*words, "--rounds", "1", "--output", str(result)], result=result),
    ]


def train(day: Day) -> list[Command]:
    """The study's survivors with a real budget, from the same aligned start."""
    words = python("-m", "specalign.training", "--recipe", "training/study_gpu.toml", "--device", day.device)
    words += ["--teacher.model", day.teacher, "--output", str(day.folder("train"))]
    words += ["--budget.seconds", str(day.train_s)]
    if day.tiny:
        words += shlex.split(
            "--data.n-train 8 --data.n-validation 2 --data.max-prompt-tokens 16 --data.max-response-tokens 4 "
            "--student.align-tokens 50 --optimiser.batch 2 --budget.steps 2 --data.prompt 'w1 {document}'"
        )
    return [*_start(day), Command("train", words)]


def report(day: Day) -> list[Command]:
    """What the survivors are worth: the benchmark of both, and its report."""
    words = bench("run", "--suite", "benchmarks/study_gpu.toml", "--device", day.device)
    words += ["--target.model", day.teacher, "--output", str(day.folder("report") / "run")]
    words += ["--drafter", *(f"{arm}={day.folder('train') / arm}" for arm in ("jsd", "rank_anchored"))]
    if day.tiny:
        words += shlex.split(
            "--data.limit 2 --data.max-prompt-tokens 16 --data.prompt 'w1 {document}' --decoding.gammas 1 "
            "--decoding.max-new-tokens 4 --decoding.temperatures 0"
        )
    return [Command("report", words)]


def sizes(day: Day) -> list[Command]:
    """Real sizes with random weights, where only time matters: Qwen2.5-0.5B drafting for Qwen2.5-1.5B."""
    target, drafter = (day.work / "models" / name for name in ("qwen2.5-1.5b", "qwen2.5-0.5b"))
    scale = ["--shrink"] if day.tiny else []
    made = [
        Command(
            f"make_{folder.name}",
            models("random", "--sizes", folder.name, "--tokenizer", day.teacher, "--output", folder, *scale),
        )
        for folder in (target, drafter)
    ]
    return [*_start(day), *made, *_decoding(day, str(target), str(drafter), day.folder("sizes"))]


def _start(day: Day) -> list[Command]:
    """A teacher for a test, and an untrained drafter whose times are a trained one's."""
    made = [Command("make_tiny", models("tiny", "--output", day.work / "models/tiny"))] if day.tiny else []
    slice_ = models("slice", "--teacher", day.teacher, "--layers", 2, "--output", day.work / "models/slice")
    return [*made, Command("make_slice", slice_)]


def _decoding(day: Day, target: str, drafter: str, folder: Path) -> list[Command]:
    own = ["--device", day.device]
    calls = ["--compiled", "--rounds", 2, "--tokens", 1, 2] if day.tiny else ["--compiled", 1, 5]
    loop = ["--prompts", 1, "--tokens", 4, "--repeats", 1] if day.tiny else ["--compiled", "--prompts", 6]
    return [
        *(
            Command(
                f"calls_{role}",
                python(
                    "benchmarks/bench_runtimes.py", "--model", name, *own, *calls, "--output", folder / file
                ),
            )
            for role, name, file in (("target", target, "target.json"), ("drafter", drafter, "drafter.json"))
        ),
        Command(
            "loop",
            python(
                *("benchmarks/bench_decoding.py", "--target", target, "--drafter", drafter, *own, *loop),
                *("--output", folder / "loop.json"),
            ),
            result=folder / "loop.json",
        ),
    ]


STAGES: dict[str, Callable[[Day], list[Command]]] = {
    "selftest": selftest,
    "decoding": decoding,
    "losses": losses,
    "training": training,
    "train": train,
    "report": report,
    "sizes": sizes,
}
