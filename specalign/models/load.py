"""Models and tokenizers by one scheme of names, with errors that say what to do.

A name is a hub id (``Qwen/Qwen2.5-0.5B-Instruct``), a local folder, a ``.gguf`` file, or ``builtin:smollm2``.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from specalign.errors import UserError, unknown
from specalign.models.devices import prepare_device
from specalign.models.gguf import builtin_gguf, convert_gguf
from specalign.models.hub import cached_folder, require_on_hub
from specalign.models.probe import require_own_logits
from specalign.models.weights import quiet_loading, require_finite, require_fit, require_whole_files
from specalign.names import require_model_name

Attention = Literal["auto", "sdpa", "eager", "flash_attention_2"]
Quantization = Literal["none", "4bit", "8bit"]
BITS: dict[Quantization, float | None] = {"none": None, "4bit": 4.5, "8bit": 8.0}
"""Bits of a quantised weight, block scales included; None: those of its dtype."""
DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
    "vocab.txt",
    "tokenizer_config.json",
)
LONGEST_REASON = 300
"""Letters that are shown of what transformers says."""


def resolve_device(name: str) -> torch.device:
    """``auto`` (CUDA where there is one, else the CPU), ``cpu``, ``cuda``, ``cuda:1``, ``mps``.

    Raises UserError for a device that this machine does not have.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise unknown("device", name, ("auto", "cpu", "cuda", "cuda:N", "mps")) from None
    if device.type == "cuda" and not (device.index or 0) < torch.cuda.device_count():
        raise UserError(
            f"device {name!r} asked for, but this machine has {torch.cuda.device_count()} CUDA devices"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("device 'mps' asked for, but this machine has none")
    return device


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """``auto`` is bfloat16 on CUDA and float32 elsewhere."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if name not in DTYPES:
        raise unknown("dtype", name, ("auto", *DTYPES))
    if name == "float64" and device.type == "mps":
        raise UserError("dtype float64 asked for, but MPS has none; use float32, or the CPU (--device cpu)")
    return DTYPES[name]


def resolve_model(name: str) -> str:
    """What transformers should load for ``name``: a hub id or the path of a checkpoint folder."""
    require_model_name(name)
    if name.startswith("builtin:"):
        return str(convert_gguf(builtin_gguf(name.removeprefix("builtin:"))))
    if name.endswith(".gguf"):
        return str(convert_gguf(Path(name)))
    return str(Path(name)) if Path(name).is_dir() else name


def local_folder(source: str) -> Path | None:
    """Where the files of what :func:`resolve_model` gave lie; None where nothing of it is downloaded."""
    path = Path(source)
    return path if path.is_dir() else cached_folder(source)


def _found(name: str) -> str:
    """:func:`resolve_model`, and the hub asked once whether it has such a model."""
    source = resolve_model(name)
    if not Path(source).is_dir():
        require_on_hub(source)
    return source


def load_tokenizer(name: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a model by name."""
    source = _found(name)
    folder = local_folder(source)
    if folder and Path(source) == folder and not any((folder / file).is_file() for file in TOKENIZER_FILES):
        raise UserError(
            f"model {name!r} has no tokenizer: its folder has no {', '.join(TOKENIZER_FILES[:-1])} or "
            f"{TOKENIZER_FILES[-1]}; copy the tokenizer's files there from the model that it was made from"
        )
    with _clear_errors(name, "the tokenizer of model"):
        return AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)


def load_model(
    name: str,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    quantization: Quantization = "none",
    attn: Attention = "auto",
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Load a causal or encoder-decoder model by name, in eval mode, from safetensors only.

    Raises UserError where the name, the attention implementation or the quantisation cannot be had; where files are
    damaged, keys are not those of the config or weights are NaN; and for an architecture whose own logits are not
    what our forward pass gives.
    """
    source = _found(name)
    require_whole_files(name, local_folder(source))
    prepare_device(torch.device(device))
    options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, "trust_remote_code": trust_remote_code}
    if attn != "auto":
        options["attn_implementation"] = attn
    if quantization != "none":
        options |= {"quantization_config": _bitsandbytes(quantization, dtype), "device_map": {"": str(device)}}
    with _clear_errors(name):
        model = _read(name, source, options)
    if quantization == "none":
        model.to(torch.device(device))  # type: ignore[arg-type]
    model.eval()
    require_finite(name, model)
    require_own_logits(f"model {name!r}", model)
    return model


def _read(name: str, source: str, options: dict[str, Any]) -> PreTrainedModel:
    """What transformers makes of a checkpoint. Raises UserError where that would be drawn at random in part."""
    with quiet_loading():
        config = AutoConfig.from_pretrained(source, trust_remote_code=options["trust_remote_code"])
        auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        loaded: Any = auto.from_pretrained(
            source, **options, output_loading_info=True, ignore_mismatched_sizes=True
        )
    model, report = loaded
    require_fit(name, report)
    return model


def check_weights(name: str, *, trust_remote_code: bool = False) -> str:
    """How many files a checkpoint has; their headers are compared with their sizes and with the config.

    Raises UserError where they do not match. No weight is read.
    """
    source = _found(name)
    n_files = require_whole_files(name, local_folder(source))
    if not n_files and not Path(source).is_dir():
        return "not downloaded yet"
    options = {"trust_remote_code": trust_remote_code, "use_safetensors": True, "device_map": "meta"}
    with _clear_errors(name):
        _read(name, source, options)
    return f"{n_files} file{'s' if n_files > 1 else ''}, all keys and shapes as config.json says"


def is_encoder_decoder(name: str, *, trust_remote_code: bool = False) -> bool:
    """Whether a model has an encoder, by its config alone."""
    source = _found(name)
    with _clear_errors(name):
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    return bool(config.is_encoder_decoder)


def empty_model(name: str, *, trust_remote_code: bool = False, attn: Attention = "auto") -> PreTrainedModel:
    """The model's class without weights, on the meta device: only its config is read."""
    source = _found(name)
    options = {} if attn == "auto" else {"attn_implementation": attn}
    with _clear_errors(name), torch.device("meta"):
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
        auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        return auto.from_config(config, trust_remote_code=trust_remote_code, **options)


def weightless(
    name: str, *, dtype: torch.dtype, attn: Attention = "auto", trust_remote_code: bool = False
) -> PreTrainedModel:
    """As :func:`load_model` loads it, in dtype, attention and generation config, but for the weights."""
    source = _found(name)
    model = empty_model(name, trust_remote_code=trust_remote_code, attn=attn).eval()
    model.to(dtype=dtype)
    with suppress(OSError):  # it has none: what the model's own config says
        model.generation_config = GenerationConfig.from_pretrained(source)
    return model


def require_same_tokenizer(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> None:
    """Raise UserError unless both map the same tokens to the same ids; names the first difference."""
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    if ours == theirs:
        return
    by_id = {id_: token for token, id_ in theirs.items()}
    different = [(id_, token) for token, id_ in ours.items() if by_id.get(id_) != token]
    if different:
        id_, token = min(different)
        found = f"id {id_} is {token!r} for the student and {by_id.get(id_)!r} for the teacher"
    else:
        found = f"the student's has {len(ours)} tokens, the teacher's {len(theirs)}"
    raise UserError(f"student and teacher have different tokenizers: {found}; choose two models of one family")


def require_bitsandbytes(quantization: Quantization) -> None:
    """Raise UserError where quantisation is asked for and its package is missing."""
    if quantization != "none" and importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(f"{quantization} needs bitsandbytes; install it with: pip install 'specalign[quant]'")


def _bitsandbytes(quantization: Quantization, dtype: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    require_bitsandbytes(quantization)
    if quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


@contextmanager
def _clear_errors(name: str, what: str = "model") -> Iterator[None]:
    """Turn what transformers raises about a model into one line."""
    try:
        yield
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # what foreign files make foreign code raise has no end
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"cannot load {what} {name!r}: {reason[:LONGEST_REASON]}{_hint(name, reason)}"
        ) from None


def _hint(name: str, reason: str) -> str:
    if "gated repo" in reason:
        return f"; accept its licence at https://huggingface.co/{name} and run: hf auth login"
    return "; only models with safetensors weights are read" if "safetensors" in reason else ""
