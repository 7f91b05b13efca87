"""The student before its first step: a slice of the teacher, and the slice aligned to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import chain

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from specalign.config import cache_dir
from specalign.errors import UserError
from specalign.files import atomic_path
from specalign.models.alignment import align_slice, n_passes
from specalign.models.eagle import EagleConfig, EagleHead, is_head, load_head
from specalign.models.eagle_fit import fit_head
from specalign.models.eagle_start import new_head
from specalign.models.head_fit import origin_of, require_head_fits
from specalign.models.importance import layer_influence, most_influential
from specalign.models.load import load_model
from specalign.models.properties import Tower, tower_layers
from specalign.models.slicing import choose_layers, slice_layers
from specalign.progress import progress_bar
from specalign.training.config import TrainConfig
from specalign.training.distributed import main_process_first
from specalign.training.rollouts import Tokens, read_tensors, responses_key
from specalign.training.student_config import StudentConfig
from specalign.training.teacher import attention_of

ALIGN_BATCH = 16
"""Sequences of one forward pass of the alignment."""
PROBE_TOKENS = 4_000
"""Tokens of teacher responses that pick = "influence" looks at."""

Text = tuple[Tokens, ...]
"""A decoder's text, after its encoder's where there is one."""


@dataclass(frozen=True)
class Starts:
    """A teacher, and what its slices and heads are fitted to."""

    teacher: PreTrainedModel
    facts: Callable[[], Mapping[str, str]]
    """What determines the teacher's states but the text."""
    texts: Callable[[int], list[Text]]
    """Prompts with the teacher's responses, until so many tokens are reached."""
    timed: Callable[[str], AbstractContextManager[None]]
    """Keeps the seconds of a preparation under its name."""

    def student(self, config: StudentConfig) -> PreTrainedModel:
        """The slice that ``config`` asks for, in float32."""
        chosen: dict[Tower, Sequence[int]] = {}
        if config.n_encoder_layers:
            chosen["encoder"] = self._layers(config, "encoder", config.n_encoder_layers)
        chosen["decoder"] = config.layers or self._layers(config, "decoder", config.n_layers)
        student = slice_layers(self.teacher, chosen["decoder"], chosen.get("encoder")).float()
        if config.start != "slice":
            texts = self.texts(config.align_tokens)
            with main_process_first():
                self._refit(student, chosen, config, texts)
        return student

    def head(self, config: StudentConfig, ids: Tensor | None, made_for: EagleConfig, seed: int) -> EagleHead:
        """The head that ``config`` asks for over ``ids`` [V'] of the vocabulary (None: all), in float32."""
        head = new_head(self.teacher, made_for, ids, seed).float()
        if config.start != "random":
            texts = self.texts(config.align_tokens)
            with main_process_first():
                self._fit(head, config, texts, seed)
        return head

    def _fit(self, head: EagleHead, config: StudentConfig, texts: list[Text], seed: int) -> None:
        """In closed form, or as an earlier command did for the same teacher on the same texts."""
        facts = {"head": head.config.reads, "ridge": config.ridge, "seed": seed, "texts": texts}
        path = cache_dir() / "starts" / f"{responses_key({**self.facts(), **facts})}.safetensors"
        fitted = read_tensors(path)
        if fitted is None:
            batches = list(padded_batches(texts, self.teacher.device))
            with self.timed("head"), progress_bar("fitting the head", 4 * len(batches)) as bar:
                fit_head(head, self.teacher, batches, ridge=config.ridge, progress=bar.advance)
            kept = ("fc.", "layers.")
            fitted = {
                name: parameter.detach().contiguous()
                for name, parameter in head.named_parameters()
                if name.startswith(kept)
            }
            with atomic_path(path) as partial:
                save_file(fitted, partial)
        head.load_state_dict(fitted, strict=False)

    def _layers(self, config: StudentConfig, tower: Tower, n_keep: int) -> tuple[int, ...]:
        n_layers = len(tower_layers(self.teacher, tower))
        if config.pick != "influence":
            return choose_layers(n_layers, n_keep, config.pick)
        choose_layers(n_layers, n_keep)  # raises for an impossible number before anything is computed
        texts = self.texts(min(PROBE_TOKENS, config.align_tokens))
        with self.timed(f"probe_{tower}"):
            influence = layer_influence(self.teacher, padded_batches(texts, self.teacher.device), tower)
        return most_influential(influence, n_keep)

    def _refit(
        self,
        student: PreTrainedModel,
        chosen: Mapping[Tower, Sequence[int]],
        config: StudentConfig,
        texts: list[Text],
    ) -> None:
        """Align the slice, or take what an earlier command fitted to the same teacher on the same texts."""
        facts = {
            "buffers": "exact",  # fits to slices with rounded RoPE frequencies were stored without this
            "layers": {tower: tuple(layers) for tower, layers in chosen.items()},
            "ridge": config.ridge,
            "texts": texts,
        }
        path = cache_dir() / "starts" / f"{responses_key({**self.facts(), **facts})}.safetensors"
        fitted = read_tensors(path)
        if fitted is None:
            sliced = {name: parameter.detach().clone() for name, parameter in student.named_parameters()}
            for tower, layers in chosen.items():  # the decoder is fitted to what the fitted encoder gives it
                self._align(student, layers, tower, config.ridge, texts)
            fitted = {
                name: parameter.detach().contiguous()
                for name, parameter in student.named_parameters()
                if not torch.equal(parameter, sliced[name])
            }
            with atomic_path(path) as partial:
                save_file(fitted, partial)
        student.load_state_dict(fitted, strict=False)

    def _align(
        self, student: PreTrainedModel, layers: Sequence[int], tower: Tower, ridge: float, texts: list[Text]
    ) -> None:
        batches = list(padded_batches(texts, self.teacher.device))
        with (
            self.timed(f"alignment_{tower}"),
            progress_bar("aligning the slice", n_passes(layers) * len(batches)) as bar,
        ):
            align_slice(student, self.teacher, layers, batches, tower=tower, ridge=ridge, progress=bar.advance)


def existing_student(
    config: TrainConfig, name: str, teacher: PreTrainedModel, device: torch.device, *, head: bool
) -> PreTrainedModel:
    """A model, or a head that reads ``teacher``, by name. Raises UserError where it is the other of these."""
    if head != is_head(name):
        wanted = "no head" if head else "a head, which drafts from a teacher's states"
        raise UserError(f"model {name!r} is {wanted}; student.kind is {'head' if head else 'model'}")
    if head:
        found = load_head(name, device=device)
        require_head_fits(found, teacher, origin_of(name))
        require_own_shape(config.student, found)
        return found
    return load_model(
        name,
        device=device,
        attn=attention_of(config, device),
        trust_remote_code=config.teacher.trust_remote_code,
    )


def require_own_shape(config: StudentConfig, head: EagleHead) -> None:
    """Raise UserError where a head that is trained on is asked for other states or ids than it has."""
    reads, n_rows = head.config.reads, head.lm_head.out_features
    if config.reads and tuple(config.reads) != reads:
        raise UserError(
            f"head {config.model!r} reads the states of layers {list(reads)}, not student.reads = {list(config.reads)}"
        )
    if config.draft_vocabulary not in (0, n_rows):
        raise UserError(
            f"head {config.model!r} drafts {n_rows:,} ids, not student.draft_vocabulary = {config.draft_vocabulary:,}"
        )


def padded_batches(texts: Sequence[Text], device: torch.device) -> Iterator[tuple[Tensor, ...]]:
    """(ids, mask) [B, T] of each part of the texts, padded on the right, texts of similar length together."""
    ordered = sorted(texts, key=lambda text: len(text[-1]))
    for begin in range(0, len(ordered), ALIGN_BATCH):
        parts = zip(*ordered[begin : begin + ALIGN_BATCH], strict=True)
        yield tuple(chain.from_iterable(_padded(part, device) for part in parts))


def _padded(batch: Sequence[Tokens], device: torch.device) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([len(text) for text in batch], device=device)
    width = int(lengths.max())
    ids = torch.tensor([[*text, *[0] * (width - len(text))] for text in batch], device=device)
    return ids, (torch.arange(width, device=device) < lengths[:, None]).long()
