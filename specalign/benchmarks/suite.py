"""Everything that a run needs, loaded: the target, its competitors, the prompts, and the list of generations."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from specalign.benchmarks.config import BenchConfig, named_drafters
from specalign.benchmarks.prompts import Talks, columns, encoded, turns, within
from specalign.benchmarks.runtime import make_ready
from specalign.curves import PROVENANCE
from specalign.data import Prompt, load_examples
from specalign.data.sources import has_splits, split_note
from specalign.data.trained_on import n_trained_on
from specalign.data.turns import THINKING, Turns, end_of_turn
from specalign.decoding import WITHOUT_MODEL, Drafter, EagleDrafter, Stepper, drafter_of, make_stepper
from specalign.decoding.hybrid import drafting_models
from specalign.decoding.probe import require_decodable
from specalign.errors import UserError
from specalign.files import file_sha256
from specalign.models.eagle import EagleHead, empty_head, is_head, load_head
from specalign.models.head_fit import head_fingerprint, origin_of, other_weights, require_head_fits
from specalign.models.heads import head_of
from specalign.models.load import (
    is_encoder_decoder,
    load_model,
    load_tokenizer,
    resolve_device,
    resolve_dtype,
    resolve_model,
)
from specalign.models.mask_token import masks_of
from specalign.models.preflight import outline
from specalign.models.probe import fingerprint
from specalign.models.properties import add_end, context_limit, decoder_layers, n_parameters
from specalign.models.vocabulary import load_draft_vocabulary
from specalign.progress import progress_bar
from specalign.provenance import references_sha256, weights_sha256
from specalign.records import GenerationRecord
from specalign.results import N_SEEN, TARGET, ModelInfo, seen_note
from specalign.terminal import say


@dataclass(frozen=True)
class Suite:
    """A loaded run."""

    target: Stepper
    tokenizer: PreTrainedTokenizerBase
    drafters: dict[str, Drafter | None]
    """Method -> drafter, in the order of the report's rows; None is the plain target."""
    prompts: list[Prompt]
    target_info: ModelInfo
    drafter_infos: list[ModelInfo]
    writing: Turns
    """How the prompts of later turns are written."""

    def talks(self, records: Iterable[GenerationRecord] = ()) -> Talks:
        """What finds the prompts of later turns, knowing these generations."""
        return Talks(self.prompts, self.tokenizer, self.writing, records)


def load_suite(config: BenchConfig) -> Suite:
    """Load models and prompts, of a config whose preflight passed. Raises UserError for data that do not fit."""
    device = resolve_device(config.device)
    dtype = resolve_dtype(config.target.dtype, device)
    named = named_drafters(config)
    tokenizer = load_tokenizer(config.target.model, trust_remote_code=config.target.trust_remote_code)
    prompts = load_prompts(config, tokenizer)
    with progress_bar("loading models", 1 + len(named)) as bar:
        target = load_model(
            config.target.model,
            dtype=dtype,
            device=device,
            quantization=config.target.quantization,
            attn=config.target.attn,
            trust_remote_code=config.target.trust_remote_code,
        )
        end = end_of_turn(tokenizer, config.data.template)
        add_end(target, end)
        bar.advance()
        drafters: dict[str, Drafter | None] = {TARGET: None}
        drafters |= {name: WITHOUT_MODEL[name] for name in config.include}
        infos = []
        for name, path in named.items():
            if is_head(path):
                head = load_head(path, dtype=dtype, device=device)
                _tell_other_target(name, path, head, target)
                drafters[name], info = _head(name, path, head)
            else:
                model = load_model(path, dtype=dtype, device=device, attn=config.target.attn)
                add_end(model, end)
                vocabulary = load_draft_vocabulary(Path(resolve_model(path)))
                drafters[name], info = (
                    drafter_of(model, vocabulary),
                    _drafter_info(name, path, model, vocabulary),
                )
            infos.append(info)
            bar.advance()
    target_info = _model_info(TARGET, config.target.model, target)
    for model in (target, *(model for drafter in drafters.values() for model in drafting_models(drafter))):
        require_decodable(model)  # said before anything is compiled
    prompts = within(prompts, context_limit(target), config.decoding.max_new_tokens)
    _tell_what_was_cut(prompts)
    infos = _with_seen(infos, prompts)
    stepper, drafters = make_ready(config.decoding, target, drafters, prompts, composed=bool(config.compose))
    return Suite(stepper, tokenizer, drafters, prompts, target_info, infos, _writing(config, tokenizer))


def outline_suite(config: BenchConfig) -> Suite:
    """The suite of an engine that loads the models itself: ours are without weights."""
    target = outline(config.target.model, trust_remote_code=config.target.trust_remote_code)
    add_end(target.model, end_of_turn(target.tokenizer, config.data.template))
    drafters: dict[str, Drafter | None] = {TARGET: None}
    drafters |= {name: WITHOUT_MODEL[name] for name in config.include}
    infos = []
    for name, path in named_drafters(config).items():
        if is_head(path):
            drafters[name], info = _head(name, path, empty_head(path))
        else:
            model = outline(path).model
            drafters[name], info = drafter_of(model), _drafter_info(name, path, model, None)
        infos.append(info)
    target_info = _model_info(TARGET, config.target.model, target.model)
    prompts = load_prompts(config, target.tokenizer)
    prompts = within(prompts, context_limit(target.model), config.decoding.max_new_tokens)
    _tell_what_was_cut(prompts)
    infos = _with_seen(infos, prompts)
    writing = _writing(config, target.tokenizer)
    return Suite(make_stepper(target.model), target.tokenizer, drafters, prompts, target_info, infos, writing)


def _tell_other_target(name: str, path: str, head: EagleHead, target: PreTrainedModel) -> None:
    """Raises UserError where a head does not fit; one for a target of the same shape decodes, and it is said."""
    origin = origin_of(path)
    require_head_fits(head, target, origin)
    if other_weights(origin, target):
        say(
            f"specalign-bench: drafter {name!r} is a head for a target with other logits than this one (other "
            "weights, or the same ones quantised): it may be accepted less often than where it belongs"
        )


def _writing(config: BenchConfig, tokenizer: PreTrainedTokenizerBase) -> Turns:
    keep_end = is_encoder_decoder(config.target.model, trust_remote_code=config.target.trust_remote_code)
    return turns(config.data, tokenizer, keep_end=keep_end)


def _tell_what_was_cut(prompts: Sequence[Prompt]) -> None:
    """Of conversations: documents that are cut are counted in the report."""
    oldest, last = (sum(getattr(prompt, name) for prompt in prompts) for name in ("n_cut_turns", "n_left_out"))
    if oldest or last:
        tokens = sum(prompt.n_truncated for prompt in prompts if prompt.dialogue)
        say(
            f"specalign-bench: data.max_prompt_tokens, or the target's context, has no room for {oldest} oldest turns "
            f"({tokens} tokens) and {last} last ones of {len(prompts)} prompts: they are left out"
        )


def _with_seen(infos: Sequence[ModelInfo], prompts: Sequence[Prompt]) -> list[ModelInfo]:
    """With how many of the prompts are rows that a drafter was trained on, which is said."""
    found = []
    for info in infos:
        n_seen = n_trained_on(Path(info.source), prompts)
        if n_seen:
            say(f"specalign-bench: warning: {seen_note(info.name, n_seen, len(prompts))}")
        found.append(replace(info, training={**info.training, N_SEEN: n_seen}) if n_seen else info)
    return found


def data_facts(suite: Suite) -> dict[str, Any]:
    """How many prompts, how many of them cut, and a hash of them all."""
    cut = [prompt.n_truncated for prompt in suite.prompts if prompt.n_truncated]
    return {
        "n_prompts": len(suite.prompts),
        "n_truncated_prompts": len(cut),
        "n_truncated_tokens": sum(cut),
        "n_cut_turns": sum(prompt.n_cut_turns for prompt in suite.prompts),
        "n_left_out_turns": sum(prompt.n_left_out for prompt in suite.prompts),
        "thinking": _thinking(suite),
        "n_turns": [1 + len(prompt.later) for prompt in suite.prompts],
        "prompts_sha256": hashlib.sha256(_all_prompts(suite.prompts).encode()).hexdigest(),
        "references_sha256": references_sha256(
            (prompt.id, reference)
            for prompt in suite.prompts
            for reference in (prompt.reference, *(later.reference for later in prompt.later))
        ),
    }


def _thinking(suite: Suite) -> dict[str, Any]:
    """Ids of the tokens that begin and end thinking, and whether prompts open it; empty where there are none."""
    known = suite.tokenizer.get_added_vocab()
    for begin, end in THINKING:
        if begin in known and end in known:
            ids = suite.prompts[0].input_ids
            last = next((id_ for id_ in reversed(ids) if id_ in (known[begin], known[end])), None)
            return {"begin": known[begin], "end": known[end], "opened": last == known[begin]}
    return {}


def _all_prompts(prompts: Sequence[Prompt]) -> str:
    later = [prompt.later for prompt in prompts if prompt.later]
    return repr(prompts) + (repr(later) if later else "")


def fingerprints(suite: Suite) -> dict[str, list[float]]:
    """Method -> some logits of its model on a few tokens, by which a resumed run knows that it is the same."""
    found = {TARGET: fingerprint(suite.target.model)}
    for name, drafter in suite.drafters.items():
        if drafter and drafter.alone:
            found[name] = fingerprint(drafter.alone.model)
        elif drafter and drafter.reads and drafter.kind != "hybrid":
            (head,) = drafting_models(drafter)
            assert isinstance(head, EagleHead)
            found[name] = head_fingerprint(head)
    return found


def checkpoint_hashes(config: BenchConfig) -> dict[str, str]:
    """Method -> hash of its weights, for models that lie in a local folder or file."""
    found = {}
    for name, model in {TARGET: config.target.model, **named_drafters(config)}.items():
        path = Path(resolve_model(model))
        if path.exists():
            found[name] = weights_sha256(path) if path.is_dir() else file_sha256(path)
    return found


def load_prompts(config: BenchConfig, tokenizer: PreTrainedTokenizerBase) -> list[Prompt]:
    """The prompts of a config. Raises UserError for data that do not fit."""
    data = config.data
    limit = None if data.category else data.limit or None
    examples = load_examples(
        data.source, data.split, columns=columns(data), limit=limit, skip_bad_rows=data.skip_bad_rows
    )
    if not has_splits(data.source) and data.split != "all":
        say(f"specalign-bench: {split_note(data.source)}; data.split = all takes all rows")
    if data.category:
        names = sorted({example.category for example in examples})
        examples = [example for example in examples if example.category == data.category][: data.limit or None]
        if not examples:
            raise UserError(
                f"data set {data.source!r} has no category {data.category!r} (choices: {', '.join(names)})"
            )
    keep_end = is_encoder_decoder(config.target.model, trust_remote_code=config.target.trust_remote_code)
    return encoded(data, examples, tokenizer, keep_end=keep_end)


def _model_info(name: str, source: str, model: PreTrainedModel) -> ModelInfo:
    """What a step reads: all weights, but of an embedding that is no head as well only a row a token."""
    embedding = next(model.get_input_embeddings().parameters())
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    looked_up = 0 if head_of(model).weight is embedding else embedding.numel()
    return ModelInfo(
        name,
        source,
        n_parameters(model),
        len(decoder_layers(model)),
        weights - looked_up * embedding.element_size(),
        n_multiplied=model.num_parameters() - looked_up,
        n_rows=head_of(model).width,
    )


def _head(name: str, path: str, head: EagleHead) -> tuple[Drafter, ModelInfo]:
    """A head on the target's states, and what is known of it."""
    vocabulary = head.draft_ids if head.is_trimmed else None
    info = _drafter_info(name, path, head, vocabulary)
    return EagleDrafter(head), replace(info, reads=list(head.config.reads))


def _drafter_info(name: str, path: str, model: PreTrainedModel, vocabulary: torch.Tensor | None) -> ModelInfo:
    info = _model_info(name, path, model)
    spared, element_size = 0, head_of(model).weight.element_size()
    if vocabulary is not None:
        head = head_of(model)
        spared = (head.width - len(vocabulary)) * head.weight.shape[1]
    training = _training_facts(Path(path))
    masks = masks_of(model.config)
    return ModelInfo(
        name,
        path,
        info.n_parameters,
        info.n_layers,
        info.bytes_per_step - spared * element_size,
        method=str(training.get("method", "")),
        draft_vocabulary=None if vocabulary is None else len(vocabulary),
        training=training,
        n_multiplied=info.n_multiplied - spared,
        n_rows=info.n_rows,
        parallel=masks.most if masks else 0,
    )


TRAINING_FACTS = ("method", "teacher", "steps", "trained_tokens", "wall_s", "seed", "mix", "validation")


def _training_facts(folder: Path) -> dict[str, Any]:
    """What the training run wrote of itself, and a hash of the weights as they are now."""
    path = folder / PROVENANCE
    try:
        written = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (ValueError, RecursionError):
        raise UserError(f"{path} is damaged: not JSON") from None
    facts = {key: written[key] for key in TRAINING_FACTS if key in written}
    return facts | {"weights_sha256": weights_sha256(folder)} if folder.is_dir() else facts
