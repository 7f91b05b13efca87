"""Names of models and of data: what is wrong with one that means this machine is known before torch is imported."""

from __future__ import annotations

import stat
from pathlib import Path

from specalign.errors import UserError

TEXTS = (".jsonl", ".json", ".csv", ".txt")
ENDINGS = (".jsonl", ".json", ".parquet", ".csv", ".txt", *(f"{ending}.gz" for ending in TEXTS))
KINDS = {
    stat.S_IFIFO: "a named pipe (FIFO)",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
}


def require_model_name(name: str) -> None:
    """Raise UserError for a name that is no model's: of the hub, of a folder with a config.json, or of a GGUF file."""
    path = Path(name)
    if name.startswith("builtin:"):
        return
    if name.endswith(".gguf"):
        if not path.is_file():
            raise UserError(f"no such model file: {name}")
    elif path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(f"{name} is not a model folder: it has no config.json")
    elif name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise UserError(f"no such model folder: {name} (on the hub a model is owner/name)")


def require_data_name(source: str) -> None:
    """Raise UserError for the name of a file that is not there, or is none to read from."""
    if source.startswith("spec_bench:"):
        require_file(Path(source.removeprefix("spec_bench:")))
    elif is_local(source) and not is_folder(source):
        require_file(Path(source))


def is_file_name(source: str) -> bool:
    """Whether it ends as the files do that are read here."""
    return source.lower().endswith(ENDINGS)


def is_local(source: str) -> bool:
    """Whether a data set's name means a file or folder of this machine, be it there or not."""
    return is_file_name(source) or source.startswith((".", "/", "~")) or is_there(source)


def is_there(source: str) -> bool:
    """Whether there is a file or folder of this name; none where it cannot be a name."""
    try:
        return Path(source).exists()
    except OSError:
        return False


def is_folder(source: str) -> bool:
    """Whether there is a folder of this name."""
    return is_there(source) and Path(source).is_dir()


def require_file(path: Path) -> None:
    """Raise UserError unless it is a regular file, with what it is instead."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):
        raise UserError(f"no such data file: {path}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    if not stat.S_ISREG(mode):
        kind = KINDS.get(stat.S_IFMT(mode), "no regular file")
        raise UserError(f"{path} is {kind}: data are read from files, more than once; write them to one")
