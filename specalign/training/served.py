"""The teacher's responses from vLLM: a server that writes many at a time, where generation is most of the work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from specalign.errors import UserError
from specalign.models.load import resolve_device, resolve_dtype, resolve_model
from specalign.models.vocabulary import n_ids
from specalign.serving.client import Request, Server, complete, connect
from specalign.serving.environment import vllm_python
from specalign.serving.server import model_arguments, require_vllm, serving
from specalign.training.config import TrainConfig
from specalign.training.rollouts import Tokens

SERVED_NAME = "teacher"
SHARE = "--gpu-memory-utilization"
SPARED = 0.9
"""What a server may take of a GPU's free memory."""


@dataclass(frozen=True)
class ServedWriter:
    """Writes as a :class:`Writer` does. Nothing is started or asked before the first response is wanted."""

    config: TrainConfig
    tokenizer: PreTrainedTokenizerBase
    log: Path
    """Output of a server that is started."""
    stack: ExitStack
    """Ends that server."""
    ends: Sequence[int] = ()
    """Ids that end a response."""
    device = torch.device("cpu")

    def write(
        self, prefixes: Sequence[Sequence[int]], max_new_tokens: int, generator: torch.Generator | None
    ) -> list[Tokens]:
        """One continuation of each prefix, up to its end-of-sequence token, ``rollout.batch`` requests at a time.

        Raises UserError where the server fails, or where its ids are not the teacher's tokenizer's.
        """
        server, temperature = self._server, self.config.rollout.teacher_temperature
        seeds = torch.randint(2**31, (len(prefixes),), generator=generator).tolist()
        requests = [
            Request(list(prefix), max_new_tokens, temperature, seed=seed, ends=self.ends)
            for prefix, seed in zip(prefixes, seeds, strict=True)
        ]
        try:
            with ThreadPoolExecutor(self.config.rollout.batch) as pool:
                answers = list(pool.map(lambda request: complete(server, request), requests))
        except RuntimeError as error:
            raise UserError(f"the teacher's server failed: {error}") from None
        return [self._checked(answer.token_ids, answer.text) for answer in answers]

    @cached_property
    def _server(self) -> Server:
        return self.stack.enter_context(_serving(self.config, self.log))

    def _checked(self, ids: list[int], text: str) -> Tokens:
        """Ids that mean, to the teacher's tokenizer, what the server says."""
        ours = "unknown ids"
        if max(ids) < n_ids(self.tokenizer):
            ours = str(self.tokenizer.decode(ids, skip_special_tokens=True))
        if _bare(ours) != _bare(text):
            raise UserError(
                f"the server's ids mean {text[:60]!r} to it and {ours[:60]!r} to the tokenizer of "
                f"{self.config.teacher.model!r}: does it serve that model?"
            )
        return tuple(ids)


def require_engine(config: TrainConfig) -> str:
    """What will write the responses; UserError where vLLM or the named server is missing."""
    engine = config.engine
    if config.teacher.quantization != "none":
        raise UserError("engine.name = vllm serves the teacher's own weights: set teacher.quantization = none")
    if engine.endpoint:
        return f"vLLM {connect(engine.endpoint).version} at {engine.endpoint}"
    return f"vLLM {require_vllm(vllm_python(engine.python))}"


@contextmanager
def _serving(config: TrainConfig, log: Path) -> Iterator[Server]:
    if config.engine.endpoint:
        yield connect(config.engine.endpoint)
        return
    dtype = resolve_dtype(config.teacher.dtype, resolve_device(config.device))
    trusted, model = config.teacher.trust_remote_code, resolve_model(config.teacher.model)
    words = [
        *memory_share(config),
        *model_arguments(model, SERVED_NAME, str(dtype), trust_remote_code=trusted),
        *config.engine.words,
    ]
    log.parent.mkdir(parents=True, exist_ok=True)
    with serving(vllm_python(config.engine.python), words, log) as server:
        yield server


def memory_share(config: TrainConfig) -> list[str]:
    """Of a GPU, what is free beside the teacher that is loaded already: vLLM would ask for nine tenths of it all."""
    device = resolve_device(config.device)
    if device.type != "cuda" or any(word.startswith(SHARE) for word in config.engine.words):
        return []
    torch.cuda.empty_cache()
    free, whole = torch.cuda.mem_get_info(device)
    return [SHARE, f"{SPARED * free / whole:.2f}"]


def _bare(text: str) -> str:
    """Without spaces, which tokenizers may clean up, and without characters that an end has cut."""
    return "".join(text.split()).strip("\ufffd")
