"""The recipe of a training run: small frozen dataclasses whose field docs are also the ``--help`` text.

Precedence: flag > recipe file > the method's preset > default. What a method decides is open by default (none, or
empty), so that its preset is never mistaken for a choice; ``recipe.completed`` fills it in wherever a config is used.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Fixed, Suppress, arg

from specalign.config import STRICT, NamedValues, Weights
from specalign.errors import UserError
from specalign.ranges import (
    Above0,
    Arguments,
    Batch,
    Count,
    CountOrZero,
    Device,
    Function,
    Name,
    Output,
    Seed,
    Seeds,
    Share,
    ShareAbove0,
    Temperature,
    Tokens,
)
from specalign.training.course_config import BudgetConfig, LoggingConfig, OptimiserConfig, ResultConfig
from specalign.training.student_config import StudentConfig

Method = Literal["untrained", "aligned", "sft", "seqkd", "gkd", "distillspec", "contrastive"]
Source = Literal["ground_truth", "teacher", "student", "mixed"]
Arms = dict[Name, dict[str, Any]]
PLUGIN = "plugin"
"""What ``objective.plugin`` is called among the weights."""


@dataclass(frozen=True)
class TeacherConfig:
    """The frozen target model."""

    model: str = "builtin:smollm2"
    """Hub id, local folder, .gguf file, or builtin:smollm2."""
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = "auto"
    """Weights' dtype; auto: bfloat16 on CUDA, else float32."""
    quantization: Literal["none", "4bit", "8bit"] = "none"
    """bitsandbytes: 4bit (NF4, also on CPU) or 8bit."""
    reuse_states: bool = False
    """Keep its hidden states of fixed responses (d numbers a token) for later epochs and methods."""
    reuse_gib: Above0 = 2.0
    """GiB of these states that are kept at most; the rest is computed each time."""
    reuse_on_disk: bool = False
    """Keep them in the cache folder, for later commands too, not in main memory."""
    offload: Literal["none", "after-states"] = "none"
    """after-states: write the responses, keep the states of all of them (reuse_states), then give the teacher's memory
    back but for its head, and train. For responses that are fixed."""
    trust_remote_code: bool = False
    """Run the model repository's own code."""
    __pydantic_config__ = STRICT


@dataclass(frozen=True)
class DataConfig:
    """Prompts and references."""

    source: Annotated[str, arg(aliases=["--data"])] = "builtin:docstrings"
    """builtin:docstrings, builtin:functions, cnn_dailymail, xsum, gsm8k, wmt, owner/name[:config], a file or folder."""
    document: str = ""
    """Column of the document, or column.field; empty: the source's own default."""
    reference: str = ""
    """Column of the reference, or column.field; empty: the source's own default."""
    messages: str = ""
    """Column of a conversation's messages; empty: messages, conversations, prompt or turns, where it is a list."""
    skip_bad_rows: Annotated[bool, arg(aliases=["--skip-bad-rows"])] = False
    """List rows that cannot be used and go on without them, instead of stopping."""
    prompt: str = ""
    """The user's message, with {document} in it, or a name (summarize, tldr, ...); empty: the source's own."""
    template: Literal["auto", "chat", "plain"] = "auto"
    """Wrap the message in the tokenizer's chat template; auto: where it has one."""
    template_arguments: NamedValues = field(default_factory=dict)
    """Given to the chat template, such as enable_thinking=false."""
    turns: Literal["last", "all"] = "last"
    """Which of a conversation's answers are trained on; the teacher writes them anew, in order, unless
    rollout.source is ground_truth. all: in one row, or each in a row of its own where the chat template rewrites
    earlier answers (leaves out their thinking)."""
    max_prompt_tokens: Tokens = 128
    """Longest prompt, in tokens; documents are cut to fit, conversations lose their oldest turns."""
    max_response_tokens: Tokens = 48
    """Longest response, in tokens: generated ones stop here, references are cut."""
    n_train: CountOrZero = 0
    """Training prompts; 0: the whole split."""
    n_validation: Count = 32
    """Validation prompts, which choose weights, and rates and objectives between runs."""
    n_test: CountOrZero = 0
    """Test prompts, used for nothing else: held_out.jsonl has the finished student's acceptance on each; 0: none."""
    __pydantic_config__ = STRICT


@dataclass(frozen=True)
class RolloutConfig:
    """What responses the drafter is trained on."""

    source: Source | None = None
    """References, responses of the teacher, responses of the student (on-policy; a head's are drafts off the text), or
    both of these; none: as the method says."""
    student_fraction: Share = 0.5
    """mixed: probability, for each sequence by itself, that the student writes it, or a head drafts off it."""
    style: Literal["branches", "full"] | None = None
    """On-policy: short branches off prefixes of a teacher response, or whole responses; none: as the method says."""
    k_max: Tokens = 4
    """branches: their length is drawn from 1..k_max tokens, once a step; a head's have student.unroll tokens."""
    branches: Batch = 8
    """branches: number of them off each prompt's response, a head's off all that is trained on; they share its forward
    pass."""
    prompts: bool = False
    """Train on the prompts' own tokens too, where a response is not the student's: more tokens of the same passes."""
    trunk: Literal["teacher", "ground_truth"] = "teacher"
    """branches: responses whose prefixes they start from."""
    temperature: Temperature = 1.0
    """Sampling temperature of the student; 0: greedy."""
    top_p: ShareAbove0 = 1.0
    """Nucleus of the student's sampling; 1: off."""
    teacher_temperature: Temperature = 0.0
    """Sampling temperature of the teacher's responses; 0: greedy."""
    packed: bool = True
    """Share one forward pass among a prompt's branches where model and attention allow it."""
    batch: Batch = 32
    """Prompts that are generated for at a time."""
    __pydantic_config__ = STRICT

    @property
    def student_share(self) -> float:
        """Probability that the student writes a sequence, or a head drafts off it."""
        return {"student": 1.0, "mixed": self.student_fraction}.get(self.source or "", 0.0)

    @property
    def shares_trunks(self) -> bool:
        """Whether the branches off a response go through one pass, under a mask."""
        return self.packed and self.style == "branches" and self.student_share > 0


@dataclass(frozen=True)
class EngineConfig:
    """What writes the teacher's responses."""

    name: Annotated[Literal["own", "vllm"], arg(aliases=["--rollout-engine"])] = "own"
    """own: this process; vllm: a server of vLLM, rollout.batch requests at a time. The student writes its own here."""
    python: Annotated[str, arg(aliases=["--engine-python"])] = ""
    """vllm: Python of the environment that has it; empty: $SPECALIGN_VLLM_PYTHON."""
    arguments: Annotated[Arguments, arg(aliases=["--engine-arguments"])] = ""
    """vllm: more arguments of vllm serve, in one word: --engine-arguments="--gpu-memory-utilization 0.5"."""
    endpoint: Annotated[str, arg(aliases=["--endpoint"])] = ""
    """vllm: URL of a running server of the teacher; empty: one is started where responses are missing, then ended."""
    __pydantic_config__ = STRICT

    @property
    def words(self) -> list[str]:
        """The arguments, one by one."""
        return shlex.split(self.arguments)


@dataclass(frozen=True)
class ObjectiveConfig:
    """What is minimised; see specalign.losses.LOSSES."""

    weights: Weights = field(default_factory=dict)
    """Objectives and their weights; empty: as the method says."""
    hyper: Weights = field(default_factory=dict)
    """Hyper-parameters by name, such as temperature (KD_TEMP), beta or gamma."""
    plugin: Function = ""
    """A loss of your own with the table's signature, imported from the current folder or where Python looks; among the
    weights it is called plugin, and alone there unless they are given."""
    teacher_temperature: Above0 = 1.0
    """Divides the teacher's logits first; below 1: a sharper teacher, for greedy decoding."""
    keep: ShareAbove0 = 1.0
    """Share of tokens trained on, those with the largest loss (beyond the reference's, if there is one); 1: all."""
    reference: str = ""
    """A drafter trained before (folder or model name), whose loss keep subtracts: AdaSPEC's selection."""
    chunk_tokens: CountOrZero = 0
    """Positions whose logits are in memory at a time; 0: 64 MiB of logits, on CUDA 512."""
    __pydantic_config__ = STRICT


@dataclass(frozen=True)
class TrainConfig:
    """Train a drafter for a teacher."""

    recipe: Path | None = None
    """TOML file with any of these fields; flags win over it."""
    method: Method = "gkd"
    """Preset that the file and flags override; untrained and aligned take no step."""
    compare: tuple[str, ...] = ()
    """Train several methods or arms from the same start, each into OUTPUT/NAME; empty: all arms of the recipe."""
    arms: Fixed[Suppress[Arms]] = field(default_factory=dict)
    """Recipe only: [arms.NAME] tables, each a method and whatever else differs from the recipe."""
    sweep: tuple[str, ...] = ()
    """Train an arm for each combination of values, each as OPTION=VALUE,VALUE,... such as optimiser.lr=1e-4,3e-4, into
    OUTPUT/NAME; the finished runs are ranked."""
    seeds: Seeds = ()
    """Train with each of these seeds, into OUTPUT/NAME/seed-N; empty: with seed alone."""
    output: Output = Path("runs/student")
    """Folder of the trained student."""
    overwrite: bool = False
    """Remove the files that an earlier run wrote into the output folder, and start again."""
    seed: Seed = 0
    """Seed of data order, rollouts and mix: the same for every method."""
    device: Device = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    attn: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    """Attention implementation; flash_attention_2 falls back to auto where the machine or model lacks it, and is
    for whole texts: decoding and packed branches run by sdpa."""
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    data: DataConfig = field(default_factory=DataConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    result: ResultConfig = field(default_factory=ResultConfig)
    __pydantic_config__ = STRICT


UNTRAINED = ("untrained", "aligned")
"""Pseudo methods: the start of training, as a student folder. A recipe's budget does not apply to them."""


def require_sliceable(config: TrainConfig) -> None:
    """Raise UserError where the student is made of a teacher whose weights are quantised."""
    if config.teacher.quantization != "none":
        made = "copied into a head" if config.student.is_head else "sliced"
        raise UserError(f"a quantised teacher cannot be {made}; name an existing student.model")
