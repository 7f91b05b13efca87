"""What a benchmark run is checked for before a weight is loaded."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path

from specalign.analysis.verdict import MAX_BUSY
from specalign.benchmarks.config import BenchConfig, named_drafters
from specalign.benchmarks.prompts import columns, encoded
from specalign.benchmarks.runtime import resolve_runtime
from specalign.data.corpus import corpus_files, corpus_texts
from specalign.data.preflight import describe_prompts, describe_rows, describe_splits, first_rows, licence
from specalign.data.prompts import Prompt
from specalign.data.trained_on import n_trained_on
from specalign.data.turns import end_of_turn
from specalign.decoding.verification import RULES
from specalign.errors import UserError, unknown
from specalign.models import preflight as models
from specalign.models.eagle import EagleHead, check_head_weights, empty_head, is_head
from specalign.models.head_fit import check_head_fits, check_verifier, origin_of
from specalign.models.load import BITS, check_weights, require_bitsandbytes, resolve_device, resolve_dtype
from specalign.models.mask_token import masks_of
from specalign.models.properties import context_limit, n_parameters, require_unscaled
from specalign.preflight import Caution, Check, Finding, examine
from specalign.provenance import BusyMeter
from specalign.results import seen_note

LOOK_S = 1.0
"""Seconds that others are watched for before a run."""
UNTRUSTED = "speed-ups measured now will not be trusted"
Outlined = Callable[[], models.Outline]


def findings(config: BenchConfig, *, data: bool) -> list[Finding]:
    """Check a run; ``data`` looks at a few rows and at the load too, which a run need not: it does so itself."""
    target: Outlined = cache(
        lambda: models.outline(config.target.model, trust_remote_code=config.target.trust_remote_code)
    )
    drafters: dict[str, Outlined] = {
        name: cache(partial(_drafter, name, path, target)) for name, path in named_drafters(config).items()
    }
    checks: list[Check] = [
        ("device", lambda: str(resolve_device(config.device))),
        ("verification rule", lambda: _rule(config)),
        ("target", lambda: models.describe(target())),
        *_weights_check(config, "weights", config.target.model),
        ("vocabulary", lambda: models.check_width(target())),
        (
            "end of text",
            lambda: models.check_end(target(), end_of_turn(target().tokenizer, config.data.template)),
        ),
        (
            "attention",
            lambda: models.check_attention(target(), config.target.attn, resolve_device(config.device)),
        ),
        ("runtime", lambda: _runtime(config, target())),
        *([("corpus", lambda: _corpus(config.copying.corpus))] if config.copying.corpus else []),
        ("context", lambda: _target_context(config, target())),
    ]
    for name, drafter in drafters.items():
        makes = _head_checks if is_head(named_drafters(config)[name]) else _drafter_checks
        checks += makes(config, name, drafter, target)
    checks.append(("memory", lambda: _memory(config, target(), [load() for load in drafters.values()])))
    if data:
        checks += [*_data_checks(config, target), ("quiet machine", _quiet)]
    return examine(checks)


def _drafter(name: str, path: str, target: Outlined) -> models.Outline:
    try:
        if is_head(path):  # it drafts the target's ids, by the target's tokenizer
            return models.Outline(path, empty_head(path), target().tokenizer)
        return models.outline(path)
    except UserError as error:
        raise UserError(f"drafter {name!r}: {error}") from None


def _weights_check(config: BenchConfig, what: str, model: str, drafter: str = "") -> list[Check]:
    """The headers of the files that this process will load; a server loads its own."""
    if config.engine.name != "own":
        return []

    def check() -> str:
        try:
            return check_weights(model, trust_remote_code=config.target.trust_remote_code)
        except UserError as error:
            raise UserError(f"drafter {drafter!r}: {error}" if drafter else str(error)) from None

    return [(what, check)]


def _drafter_checks(config: BenchConfig, name: str, drafter: Outlined, target: Outlined) -> list[Check]:
    def same_ids() -> str:
        ours, theirs = drafter(), target()
        try:
            return models.check_same_ids(ours, theirs)
        except UserError as error:
            raise UserError(f"drafter {name!r}: {error}") from None

    def attention() -> str | Caution:
        return models.check_attention(drafter(), config.target.attn, resolve_device(config.device))

    return [
        (name, lambda: models.describe(drafter())),
        *_weights_check(config, f"{name}: weights", named_drafters(config)[name], name),
        (f"{name}: same kind", lambda: models.check_same_kind(drafter(), target())),
        (f"{name}: same token ids", same_ids),
        (f"{name}: vocabulary", lambda: models.check_width(drafter())),
        (f"{name}: served elsewhere", lambda: models.check_served(drafter(), target())),
        (f"{name}: padding", lambda: models.check_padding(drafter(), target())),
        (f"{name}: chat template", lambda: models.check_same_template(drafter(), target())),
        (f"{name}: attention", attention),
        (f"{name}: context", lambda: _context(config, drafter())),
        (f"{name}: drafts", lambda: _drafts(config, name, drafter())),
    ]


def _drafts(config: BenchConfig, name: str, drafter: models.Outline) -> str | Caution:
    """How many tokens a call drafts. Raises UserError for a mask token that the model does not have, and where a server
    would draft more than it was trained for.
    """
    masks, longest = masks_of(drafter.model.config), max(config.decoding.gammas)
    if masks is None:
        return "one token a call"
    if longest > masks.most and config.engine.name != "own" and not config.engine.endpoint:
        raise UserError(too_long(name, masks.most, longest))
    if longest > masks.most:
        return Caution(
            f"{masks.most} tokens at most in one call, as it was trained: not decoding.gammas = {longest}"
        )
    return f"up to {masks.most} tokens in one call (mask token: id {masks.token})"


def too_long(name: str, most: int, gamma: int) -> str:
    """The line for a parallel drafter that a server is asked to draft more with than it was trained for."""
    return (
        f"drafter {name!r} was trained to draft {most} tokens in one call, and vLLM would draft {gamma}: choose "
        f"decoding.gammas up to {most}"
    )


def _head_checks(config: BenchConfig, name: str, drafter: Outlined, target: Outlined) -> list[Check]:
    """Of a head on the target's states: it drafts the target's own ids."""
    path = named_drafters(config)[name]

    def named(check: Callable[[EagleHead], str | Caution]) -> str | Caution:
        head = drafter().model
        assert isinstance(head, EagleHead)
        try:
            return check(head)
        except UserError as error:
            raise UserError(f"drafter {name!r}: {error}") from None

    own: list[Check] = [(f"{name}: weights", lambda: named(lambda _head: check_head_weights(path)))]
    return [
        (name, lambda: models.describe(drafter())),
        *(own if config.engine.name == "own" else []),
        (
            f"{name}: fits the target",
            lambda: named(lambda head: check_head_fits(head, target().model, origin_of(path))),
        ),
        (f"{name}: trained for", lambda: named(lambda head: check_verifier(head, config.target.model))),
        (f"{name}: context", lambda: _context(config, drafter())),
    ]


def _quiet() -> str | Caution:
    """Whether times that are taken now will pass the check of the same name in the report."""
    load = BusyMeter()
    time.sleep(LOOK_S)
    taken = load.others() or 0.0
    found = f"other processes take {taken:.0%} of the processor"
    return Caution(f"{found}: {UNTRUSTED}") if taken > MAX_BUSY else found


def _rule(config: BenchConfig) -> str:
    if config.decoding.rule not in RULES:
        raise unknown("verification rule", config.decoding.rule, RULES)
    return config.decoding.rule


def _corpus(source: str) -> str:
    """What suffix_lookup copies from. Raises UserError where it is not there, or no text."""
    texts = list(corpus_texts(source))
    return f"{len(texts)} of {len(corpus_files(source))} files are text, {sum(map(len, texts)):,} characters"


def _runtime(config: BenchConfig, target: models.Outline) -> str:
    device = resolve_device(config.device)
    dtype = resolve_dtype(config.target.dtype, device)
    quantized = config.target.quantization != "none"
    return resolve_runtime(config.decoding.runtime, target.model, dtype, device, quantized=quantized)


def _target_context(config: BenchConfig, target: models.Outline) -> str | Caution:
    """A target whose positions are scaled by the length of the text must not reach the length where that begins."""
    require_unscaled(target.model, config.data.max_prompt_tokens + config.decoding.max_new_tokens)
    return _context(config, target)


def _context(config: BenchConfig, model: models.Outline) -> str | Caution:
    """Decoding ends early, without harm, where a context is full."""
    parts = config.data.max_prompt_tokens, config.decoding.max_new_tokens
    needed = max(parts) if model.model.config.is_encoder_decoder else sum(parts)
    limit = context_limit(model.model)
    longest = max(config.decoding.gammas)
    if limit is not None and longest >= limit:
        raise UserError(f"decoding.gammas: a draft of {longest} tokens does not fit a context of {limit:,}")
    if limit is not None and needed > limit:
        return Caution(
            f"the longest prompts leave fewer than max_new_tokens of {limit:,} positions: they end early"
            f"{models.scaled(model)}"
        )
    return "relative positions: no limit" if limit is None else f"{needed:,} of {limit:,} positions"


def _memory(config: BenchConfig, target: models.Outline, drafters: Sequence[models.Outline]) -> str:
    """Weights alone: a single request's caches are small beside them."""
    if config.target.quantization != "none":
        require_bitsandbytes(config.target.quantization)
    device = resolve_device(config.device)
    full = 8 * resolve_dtype(config.target.dtype, device).itemsize
    bits = BITS[config.target.quantization] or full
    needed = (n_parameters(target.model) * bits + sum(n_parameters(each.model) * full for each in drafters)) / 8
    memory = models.device_memory_bytes(device)
    found = f"{needed / 2**30:.2f} GiB of weights, of {memory / 2**30:.2f} GiB on {device}"
    if needed > memory:
        raise UserError(
            f"{found}; choose target.quantization = 4bit, fewer drafters at a time, or another device"
        )
    return found


def _data_checks(config: BenchConfig, target: Outlined) -> list[Check]:
    data = config.data
    names = columns(data)
    rows = cache(lambda: first_rows(data.source, data.split, names, skip_bad_rows=data.skip_bad_rows))

    @cache
    def made() -> list[Prompt]:
        keep_end = target().kind == "encoder-decoder"
        return encoded(data, rows().examples, target().tokenizer, keep_end=keep_end)

    def prompts() -> str | Caution:
        keep_end = target().kind == "encoder-decoder"
        return describe_prompts(made(), target().tokenizer, data.template, keep_end=keep_end)

    def trained_on(name: str, path: str) -> str | Caution:
        n_seen = n_trained_on(Path(path), made())
        note = seen_note(name, n_seen, len(made()))
        return Caution(note) if n_seen else "none of these rows, as far as its folder says"

    return [
        ("rows", lambda: describe_rows(rows(), references=False)),
        ("split", lambda: "all rows" if data.split == "all" else describe_splits(data.source)),
        ("prompts", prompts),
        *(
            (f"{name}: trained on", partial(trained_on, name, path))
            for name, path in named_drafters(config).items()
        ),
        ("data's licence", lambda: licence(data.source)),
    ]
