"""What a run tells while it trains: its log lines, trackers and validations, and when its checkpoints are due."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from specalign.config import as_table
from specalign.errors import UserError
from specalign.progress import Bar
from specalign.terminal import say
from specalign.training import distributed, folder
from specalign.training.checkpoints import Kept, list_checkpoints, save_best, save_checkpoint
from specalign.training.config import UNTRAINED
from specalign.training.optimiser import gathered_state
from specalign.training.rows import Layout
from specalign.training.scoring import overlaps
from specalign.training.setup import Run
from specalign.training.sharding import whole
from specalign.training.tracking import Trackers
from specalign.training.validation import as_fields, disagreement


@dataclass(frozen=True)
class StepReport:
    """What one optimiser step did."""

    loss: float
    """Mean per-token loss."""
    n_tokens: int
    k: int
    """Longest scored sequence."""
    grad_norm: float
    lr: float
    rollout_s: float
    update_s: float
    scored: tuple[tuple[Layout, Tensor | None], ...]
    """What was scored, and the teacher's states there if the objective needed them."""


@dataclass
class Journal:
    """The tally between two log lines of a run."""

    run: Run
    bar: Bar
    begun: float
    """Clock reading at which the run began, interrupted sessions counted in."""
    last_log: float = field(default_factory=time.monotonic)
    loss_sum: float = 0.0
    n_tokens: int = 0

    def record(self, report: StepReport, *, ended: bool) -> None:
        """Whatever is due after a step; every process calls this. ``ended``: the last validation is to come anyway."""
        log, position = self.run.config.logging, self.run.position
        self.loss_sum += report.loss * report.n_tokens
        self.n_tokens += report.n_tokens
        logs = position.step % log.every == 0
        validates = bool(log.validate_every) and position.step % log.validate_every == 0 and not ended
        saves = bool(log.checkpoint_every) and position.step % log.checkpoint_every == 0
        if not (logs or validates or saves):
            return
        optimiser_state = gathered_state(self.run.optimiser) if saves else {}
        with whole(self.run.pair.student):
            if distributed.rank() != 0:
                return
            if logs:
                self._log(report)
            if validates:
                validate(self.run, self.begun)
            if saves:
                checkpoint(self.run, optimiser_state)

    def _log(self, report: StepReport) -> None:
        now = time.monotonic()
        write_log_line(self.run, self.bar, report, self.loss_sum / max(1, self.n_tokens), now - self.last_log)
        self.last_log, self.loss_sum, self.n_tokens = now, 0.0, 0


def checkpoint(run: Run, optimiser_state: dict[str, dict[str, Tensor]]) -> Path:
    """Write everything that the run needs to go on from here. UserError, with the last one, where that fails."""
    try:
        return save_checkpoint(
            run.path,
            run.pair.student,
            optimiser_state,
            run.generator,
            run.position,
            run.scaler,
            keep=run.config.logging.keep_checkpoints,
        )
    except (OSError, SafetensorError) as error:
        older = list_checkpoints(run.path)
        known = f"the last one is {older[-1]}" if older else "there is no earlier one"
        raise UserError(
            f"cannot write a checkpoint of step {run.position.step} below {run.path} ({error}); {known}: make room, "
            "and the same command goes on from it"
        ) from None


@contextmanager
def tracking(run: Run) -> Iterator[None]:
    """Open the run's trackers, and close them whatever happens."""
    names = run.config.logging.trackers
    if names and distributed.rank() == 0:
        run.trackers = Trackers(names, run.path, as_table(run.config))
    try:
        yield
    finally:
        if run.trackers:
            run.trackers.finish()


def note(run: Run, fields: dict[str, Any]) -> None:
    """One line of train.jsonl, and of the trackers."""
    folder.append_log(run.path, fields)
    if run.trackers:
        run.trackers.log(fields)


def write_log_line(run: Run, bar: Bar, report: StepReport, loss: float, dt_s: float) -> None:
    """The line on the terminal, and the same fields with a few more in train.jsonl."""
    position = run.position
    agree = float(torch.cat([overlaps(run.pair, *scored).agreement for scored in report.scored]).mean())
    bar.say(f"[step {position.step}] kd={loss:.3f} agree={agree:.3f} k={report.k} dt={dt_s:.1f}s")
    fields = {
        "kind": "train",
        "step": position.step,
        "kd": loss,
        "agree": agree,
        "k": report.k,
        "dt_s": dt_s,
        "lr": report.lr,
        "grad_norm": report.grad_norm if math.isfinite(report.grad_norm) else None,
        "n_tokens": position.n_tokens,
        "student_share": position.n_on_policy / position.n_prompts,
        "rollout_s": report.rollout_s,
        "update_s": report.update_s,
        "train_s": position.train_s,
        "wall_s": position.wall_s,
    }
    note(run, fields)


def validate(run: Run, begun: float) -> None:
    """Score the student on the validation split, and warn where a real decode tells another story.

    Rank 0 does it by itself: the student is whole.
    """
    if distributed.rank() != 0:
        return
    config = run.config.logging
    score = run.validation.score(run.pair)
    probe = None
    if config.probe_prompts:
        generator = torch.Generator(run.pair.teacher.device).manual_seed(run.config.seed)
        probe = run.validation.probe(run.pair, config.probe_prompts, generator)
        if warning := disagreement(score, probe):
            say(f"specalign-train: warning: {warning}")
    run.position.wall_s = time.monotonic() - begun
    found = as_fields(score, probe)
    keep_best(run, found)
    fields = {
        "kind": "validation",
        "step": run.position.step,
        **found,
        "n_tokens": run.position.n_tokens,
        "train_s": run.position.train_s,
        "wall_s": run.position.wall_s,
    }
    note(run, fields)
    say(
        f"[validation {run.position.step}] alpha={score.alpha:.3f} agree={score.agreement:.3f} "
        f"tau={score.tau:.2f} ({score.n_positions} positions)",
    )


def keep_best(run: Run, found: dict[str, float]) -> None:
    """Save the weights where the watched metric is better than ever before."""
    result, best = run.config.result, run.position.best_metric
    if result.keep == "last" or run.config.method in UNTRAINED:
        return
    if best is None or found[result.metric] > best:
        run.position.best_metric = found[result.metric]
        save_best(run.path, run.pair.student, Kept(run.position.step, result.metric, found[result.metric]))


def last_validation(run: Run) -> int | None:
    """The step of the last validation in the log."""
    steps = [line["step"] for line in folder.read_log(run.path) if line["kind"] == "validation"]
    return steps[-1] if steps else None
