"""The end of a run: which weights it leaves, that nothing is lost on the way, and what training came to."""

from __future__ import annotations

import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from specalign import provenance
from specalign.config import as_table
from specalign.data.trained_on import write_documents
from specalign.errors import UserError
from specalign.files import write_json, write_jsonl
from specalign.models.head_fit import MADE_FOR, origin_as
from specalign.terminal import say
from specalign.training import folder
from specalign.training.checkpoints import BEST, FOLDER, list_checkpoints, load_best, read_best, sweep
from specalign.training.config import UNTRAINED
from specalign.training.journal import checkpoint
from specalign.training.materials import Materials
from specalign.training.setup import Run
from specalign.training.validation import make_validation


@dataclass(frozen=True)
class Course:
    """The watched metric at the start, at its best and at the end, with the steps of the last two."""

    metric: str
    start: float
    best: float
    best_step: int
    end: float
    end_step: int

    def __str__(self) -> str:
        return (
            f"{self.metric} {self.start:.3f} at the start, best {self.best:.3f} (step {self.best_step}), "
            f"{self.end:.3f} at the end"
        )


def secure(run: Run, optimiser_state: dict[str, dict[str, Tensor]]) -> None:
    """Make sure that a checkpoint holds the last step before the student is written."""
    checkpoints = list_checkpoints(run.path)
    if run.config.method not in UNTRAINED and not (
        checkpoints and checkpoints[-1].name.endswith(f"-{run.position.step:08d}")
    ):
        checkpoint(run, optimiser_state)


def finish(run: Run, materials: Materials, stamp: dict[str, Any], begun: float) -> None:
    """Write the student, then the provenance that says that it is complete.

    The last checkpoint stays until both are in place. UserError that says where it is, where they cannot be written.
    """
    course, step = course_of(run), run.position.step
    try:
        kept = read_best(run.path) if run.config.result.keep == "best" else None
        if kept is not None and kept.step != step:
            load_best(run.path, run.pair.student)
            step = kept.step
        write_jsonl(run.path / folder.VALIDATION, run.validation.by_prompt(run.pair))
        write_held_out(run, materials)
        write_student(run, materials)
        write_json(run.path / folder.PROVENANCE, {**facts_of(run, materials, course, step, begun), **stamp})
    except (OSError, SafetensorError) as error:
        raise UserError(_explain_unwritten(run, error)) from None
    tidy(run)
    say(f"{run.path}: {last_line(run, course, step)}")
    if warning := no_gain(run, course):
        say(f"specalign-train: warning: {run.path}: {warning}")


def write_held_out(run: Run, materials: Materials) -> None:
    """held_out.jsonl: the finished student's acceptance on each test prompt, which nothing has looked at before."""
    if materials.test:
        test = replace(make_validation(materials, "test", run.pair.reads), gamma=run.config.logging.probe_gamma)
        write_jsonl(run.path / folder.HELD_OUT, test.by_prompt(run.pair))


def write_student(run: Run, materials: Materials) -> None:
    """The folder that transformers loads."""
    if run.config.optimiser.gradient_checkpointing:
        run.pair.student.gradient_checkpointing_disable()
    kept = None if run.pair.reads else run.pair.draft_vocabulary  # a head's own files name its ids
    folder.write_model(run.path, run.pair.student, materials.tokenizer, kept)
    start = run.config.student.model
    write_documents(run.path, materials.train, Path(start) if start else None)


def facts_of(run: Run, materials: Materials, course: Course | None, step: int, begun: float) -> dict[str, Any]:
    """What provenance.json says of a complete run."""
    config, position = run.config, run.position
    return {
        "status": "complete",
        "method": config.method,
        "teacher": config.teacher.model,
        "student_start": config.student.model or config.student.start,
        "trained_tokens": position.n_tokens,
        "steps": position.step,
        "kept_step": step,
        "validation": {} if course is None else asdict(course),
        "train_s": position.train_s,
        "wall_s": time.monotonic() - begun,
        "prepare_s": dict(materials.seconds),
        "student_share": position.n_on_policy / max(1, position.n_prompts),
        "seed": config.seed,
        "weights_sha256": provenance.weights_sha256(run.path),
        "config": as_table(config),
        **({MADE_FOR: asdict(origin_as(run.pair.teacher))} if run.pair.reads else {}),
    }


def course_of(run: Run) -> Course | None:
    """From the log; None for a run that takes no step."""
    name = run.config.result.metric
    lines = [line for line in folder.read_log(run.path) if line["kind"] == "validation"]
    if run.config.method in UNTRAINED or not lines:
        return None
    best = max(lines, key=lambda line: line[name])
    return Course(name, lines[0][name], best[name], best["step"], lines[-1][name], lines[-1]["step"])


def last_line(run: Run, course: Course | None, step: int) -> str:
    """What became of the run."""
    position = run.position
    if course is None:
        return f"{run.config.method}, no step taken"
    which = "the start's" if step == 0 else f"step {step}'s"
    return (
        f"{run.config.method} trained, {position.step} steps, {position.n_tokens} tokens; {course}; "
        f"written: {which} weights"
    )


def no_gain(run: Run, course: Course | None) -> str | None:
    """A warning where training did not help, else None."""
    if course is None:
        return None
    last = run.config.result.keep == "last"
    if (course.end if last else course.best) > course.start:
        return None
    written = "worse weights are written, since result.keep = last" if last else "the start is what is written"
    return (
        f"training did not help: {course.metric} began at {course.start:.3f} and ended at {course.end:.3f}, and "
        f"{written}; try a lower optimiser.lr, another objective or a larger budget{_other_gain(run)}"
    )


def _other_gain(run: Run) -> str:
    """Agreement, where alpha is what was watched: data of the teacher's own choice sharpen a drafter."""
    lines = [line for line in folder.read_log(run.path) if line["kind"] == "validation"]
    start, best = lines[0]["agreement"], max(line["agreement"] for line in lines)
    if run.config.result.metric != "alpha" or best <= start:
        return ""
    return f"; for greedy decoding it did: agreement rose from {start:.3f} to {best:.3f} (result.metric = agreement)"


def tidy(run: Run) -> None:
    """Remove what only an unfinished run needs, and checkpoints where the recipe wants none."""
    (run.path / BEST).unlink(missing_ok=True)
    sweep(run.path)
    if not run.config.logging.checkpoint_every:
        for path in list_checkpoints(run.path):
            shutil.rmtree(path)
    checkpoints = run.path / FOLDER
    if checkpoints.exists() and not any(checkpoints.iterdir()):
        checkpoints.rmdir()


def require_intact(run: Path) -> None:
    """Raise UserError where a complete run's weights are gone or are not the ones that it wrote."""
    expected, found = folder.read_provenance(run).get("weights_sha256", ""), provenance.weights_sha256(run)
    if found == expected and (run / "config.json").is_file():
        return
    what = (
        "are not the ones that it wrote"
        if found and (run / "config.json").is_file()
        else "are not there any more"
    )
    raise UserError(f"{run} holds a complete run whose weights {what}; --overwrite trains it again")


def _explain_unwritten(run: Run, error: Exception) -> str:
    checkpoints = list_checkpoints(run.path)
    safe = (
        f"everything is safe in {checkpoints[-1]}" if checkpoints else "no step was taken, so nothing is lost"
    )
    return f"cannot write the student into {run.path} ({error}); {safe}: make room, and give the same command again"
