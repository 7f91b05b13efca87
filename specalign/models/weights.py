"""Whether a checkpoint's weights are whole, are those that its config describes, and are numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers.utils.logging as transformers_logging
from safetensors import SafetensorError, safe_open
from torch import nn

from specalign.errors import UserError

SHOWN = 5
"""Names that an error lists before it counts the rest."""


def require_whole_files(name: str, folder: Path | None) -> int:
    """The number of safetensors files of a checkpoint folder, their headers read and compared with their sizes.

    Raises UserError for the first one that is truncated or no safetensors file.
    """
    files = sorted(folder.glob("model*.safetensors")) if folder else []
    for path in files:
        try:
            with safe_open(path, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            reason = str(error).removeprefix("Error while deserializing header: ")
            raise UserError(
                f"model {name!r}: {path.name} ({path.stat().st_size:,} bytes) is damaged or incomplete: {reason}; "
                "copy or download it again"
            ) from None
    return len(files)


def require_fit(name: str, report: Mapping[str, Any]) -> None:
    """Raise UserError where the keys of a checkpoint are not those of the model that its config describes.

    ``report`` is what transformers' ``output_loading_info`` tells; it draws what is missing at random.
    """
    found = []
    if report["missing_keys"]:
        found.append(f"missing from the files: {_listed(report['missing_keys'])}")
    if report["unexpected_keys"]:
        found.append(f"unknown to the model: {_listed(report['unexpected_keys'])}")
    if report["mismatched_keys"]:
        shapes = [
            f"{key} {list(ours)} instead of {list(wanted)}" for key, ours, wanted in report["mismatched_keys"]
        ]
        found.append(f"of another shape: {_listed(shapes)}")
    found += [str(message).splitlines()[0] for message in report["error_msgs"]]
    if found:
        raise UserError(
            f"model {name!r}: its weights do not match its config.json ({'; '.join(found)}); is the folder a "
            "mixture of two checkpoints, or was it saved incompletely?"
        )


def require_finite(name: str, model: nn.Module) -> None:
    """Raise UserError with the names of the weights that hold NaN or infinity; the device is waited for once."""
    tensors = {
        key: tensor
        for key, tensor in model.named_parameters()
        if tensor.is_floating_point()
        and tensor.dtype.itemsize > 1
        and tensor.numel()
        and tensor.device.type != "meta"
    }
    if not tensors:
        return
    ends = [torch.stack(torch.aminmax(tensor.detach())).float() for tensor in tensors.values()]
    devices = {end.device for end in ends}
    ends = ends if len(devices) == 1 else [end.cpu() for end in ends]
    finite = torch.stack(ends).isfinite().all(1).tolist()
    bad = [key for key, fine in zip(tensors, finite, strict=True) if not fine]
    if bad:
        raise UserError(f"model {name!r}: weights that are no finite numbers (NaN or infinity): {_listed(bad)}")


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Without transformers' report on keys, which :func:`require_fit` says in a line, and its bars."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def _listed(names: Iterable[str]) -> str:
    ordered = sorted(names)
    rest = f" and {len(ordered) - SHOWN} more" if len(ordered) > SHOWN else ""
    return ", ".join(ordered[:SHOWN]) + rest
