"""Everything that a run needs to go on exactly where it was: weights, optimiser, random states, position."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from specalign.errors import UserError
from specalign.files import atomic_path
from specalign.folders import add_all
from specalign.training.optimiser import restore_state
from specalign.training.sharding import divided_like

FOLDER = "checkpoints"
BEST = "checkpoints/best.safetensors"
OPTIMISER, SCALER = "optimiser.", "scaler."


@dataclass
class Position:
    """How far a run is."""

    step: int = 0
    """Optimiser steps taken."""
    n_prompts: int = 0
    """Prompts drawn so far, over all epochs and processes: the place in the data."""
    n_tokens: int = 0
    """Trained tokens."""
    n_on_policy: int = 0
    """Sequences that the student wrote: the realised mix is n_on_policy / n_prompts."""
    train_s: float = 0.0
    """Seconds of training, validation excluded."""
    wall_s: float = 0.0
    """Seconds in all, interrupted sessions included."""
    best_metric: float | None = None
    """Best validation metric so far, where one is watched."""


def save_checkpoint(
    run: Path,
    model: nn.Module,
    optimiser_state: Mapping[str, Mapping[str, Tensor]],
    generator: torch.Generator,
    position: Position,
    scaler: torch.amp.GradScaler | None = None,
    *,
    keep: int,
) -> Path:
    """Write checkpoints/step-N below ``run`` and delete all but the last ``keep``.

    ``optimiser_state`` is what :func:`specalign.training.optimiser.gathered_state` gave.

    It appears under its name when it is complete and on the disk: a crash leaves the older ones.
    """
    folder = run / FOLDER / f"step-{position.step:08d}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
    try:
        save_file(_weights(model), partial / "model.safetensors")
        state = _flat(optimiser_state) | _random_states(generator) | _scaler_state(scaler)
        save_file(state, partial / "state.safetensors")
        (partial / "position.json").write_text(json.dumps(asdict(position)), encoding="utf-8")
        for file in partial.iterdir():
            with open(file, "rb") as written:
                os.fsync(written.fileno())
        add_all(folder / file.name for file in partial.iterdir())
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    for old in list_checkpoints(run)[:-keep]:
        shutil.rmtree(old)
    return folder


def list_checkpoints(run: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    return sorted((run / FOLDER).glob("step-*"))


def load_checkpoint(
    folder: Path,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    generator: torch.Generator,
    scaler: torch.amp.GradScaler | None = None,
) -> Position:
    """Restore everything in place. A damaged checkpoint raises UserError that offers the one before."""
    try:
        position = Position(**json.loads((folder / "position.json").read_text(encoding="utf-8")))
        weights, state = load_file(folder / "model.safetensors"), load_file(folder / "state.safetensors")
    except (OSError, ValueError, TypeError, RecursionError, SafetensorError) as error:
        older = [path for path in list_checkpoints(folder.parent.parent) if path < folder]
        advice = (
            f"delete that folder to go on from {older[-1].name}" if older else "start again with --overwrite"
        )
        raise UserError(f"checkpoint {folder} is damaged ({error}); {advice}") from None
    _restore_weights(model, weights)
    restore_state(optimiser, _optimiser_state(state))
    if scaler is not None:
        names = [name for name in state if name.startswith(SCALER)]
        scaler.load_state_dict({name.removeprefix(SCALER): state[name].item() for name in names})
    generator.set_state(state["random.rollouts"])
    torch.set_rng_state(state["random.torch"])
    if "random.cuda" in state:
        torch.cuda.set_rng_state(state["random.cuda"])
    return position


@dataclass(frozen=True)
class Kept:
    """Weights that a validation found to be the best so far, and what it found."""

    step: int
    metric: str
    value: float


def save_best(run: Path, model: nn.Module, kept: Kept) -> None:
    """The parameters and what is known of them, atomically, in the place of older ones."""
    with atomic_path(run / BEST) as partial:
        save_file(_weights(model), partial, {name: str(value) for name, value in asdict(kept).items()})


def read_best(run: Path) -> Kept | None:
    """What :func:`save_best` wrote last; None where there is nothing, or something damaged."""
    try:
        with safe_open(run / BEST, "pt") as file:
            known = file.metadata()
        return Kept(int(known["step"]), known["metric"], float(known["value"]))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None


def load_best(run: Path, model: nn.Module) -> None:
    """Restore the parameters that :func:`save_best` wrote, in place."""
    _restore_weights(model, load_file(run / BEST))


def sweep(run: Path) -> None:
    """Remove what a killed process left half written in ``run``; call it where no other process writes there."""
    for path in [*run.glob(".partial-*"), *(run / FOLDER).glob(".*")]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


@torch.no_grad()
def _restore_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    for name, parameter in _trained(model).items():
        parameter.copy_(divided_like(weights[name], parameter))


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """What :func:`_restore_weights` puts back."""
    return {name: parameter.detach().contiguous() for name, parameter in _trained(model).items()}


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters by name, tied ones once; a head's copy of the teacher's embedding is none of them."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _flat(state: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {
        f"{OPTIMISER}{name}.{field}": tensor.contiguous()
        for name, fields in state.items()
        for field, tensor in fields.items()
    }


def _optimiser_state(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    state: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith(OPTIMISER):
            name, _, field = key.removeprefix(OPTIMISER).rpartition(".")
            state.setdefault(name, {})[field] = tensor
    return state


def _scaler_state(scaler: torch.amp.GradScaler | None) -> dict[str, Tensor]:
    return (
        {}
        if scaler is None
        else {SCALER + name: torch.tensor(value) for name, value in scaler.state_dict().items()}
    )


def _random_states(generator: torch.Generator) -> dict[str, Tensor]:
    states = {"random.rollouts": generator.get_state(), "random.torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["random.cuda"] = torch.cuda.get_rng_state()
    return states
