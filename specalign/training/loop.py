"""The training loop: roll out, score, update; log, validate, checkpoint."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from specalign import provenance
from specalign.config import as_table
from specalign.data import Prompt
from specalign.errors import UserError
from specalign.files import write_json
from specalign.losses import Objective, hyper_parameters, objective, reduce_tokens
from specalign.progress import Bar, progress_bar
from specalign.training import distributed, folder
from specalign.training.checkpoints import (
    BEST,
    Position,
    list_checkpoints,
    load_checkpoint,
    load_weights,
    save_checkpoint,
    save_weights,
)
from specalign.training.config import UNTRAINED, ObjectiveConfig, TrainConfig
from specalign.training.coverage import coverage
from specalign.training.materials import Materials, data_facts
from specalign.training.memory import memory_advice
from specalign.training.optimiser import adamw, clip_gradients, gathered_state, rate
from specalign.training.reuse import TeacherStates
from specalign.training.rollouts import Policy, Writer, needs_references, needs_responses
from specalign.training.rows import Layout, Row, lay_out
from specalign.training.scoring import Pair, can_pack, columns_of, overlaps, per_token_loss, states
from specalign.training.sharding import shard, whole
from specalign.training.tracking import Trackers
from specalign.training.validation import Validation, as_fields, disagreement, make_validation


@dataclass
class Run:
    """One training run in progress."""

    config: TrainConfig
    path: Path
    pair: Pair
    policy: Policy
    prompts: Sequence[Prompt]
    objective: Objective
    optimiser: torch.optim.Optimizer
    generator: torch.Generator
    """CPU generator of rollouts and mix."""
    validation: Validation
    packed: bool
    reference: Pair | None = None
    """The drafter whose loss the selection of tokens subtracts, with the student's head; None: no such drafter."""
    teacher_states: TeacherStates | None = None
    """The teacher's states along fixed responses; None: computed anew in every step."""
    scaler: torch.amp.GradScaler | None = None
    """Scales the loss of float16 training; None in other precisions."""
    trackers: Trackers | None = None
    """Experiment trackers of rank 0, open while the loop runs."""
    position: Position = field(default_factory=Position)
    step_s: float = 0.0
    """Seconds of the last step."""

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """Trained ones."""
        return [parameter for parameter in self.pair.student.parameters() if parameter.requires_grad]


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


def train(config: TrainConfig, materials: Materials) -> Path:
    """Train one student into ``config.output`` and return that folder, going on from its last checkpoint."""
    path = config.output
    stamp = provenance.stamp(str(materials.device))
    if distributed.rank() == 0:
        folder.claim(config, stamp)
    distributed.wait_for_all()
    run = start_run(config, materials)
    covered = coverage(run.pair, run.validation)
    if covered and distributed.rank() == 0:
        print(f"{path}: {covered}", flush=True)
    resume(run)
    begun = time.monotonic() - run.position.wall_s
    with tracking(run), progress_bar(f"{config.method} -> {path}", 1.0) as bar:
        if run.position.step == 0:
            with whole(run.pair.student):
                validate(run, begun)
        loop(run, bar, begun)
    with whole(run.pair.student):
        if distributed.rank() == 0:
            stamp |= {"data": data_facts(materials), "draft_vocabulary": asdict(covered) if covered else {}}
            finish(run, materials, stamp, begun)
    return path


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


def start_run(config: TrainConfig, materials: Materials) -> Run:
    """Everything that the loop needs, at step 0."""
    student = materials.student(config.student)
    if config.optimiser.gradient_checkpointing:
        student.gradient_checkpointing_enable({"use_reentrant": False})
    if config.optimiser.sharded == "weights" and distributed.world_size() > 1:
        shard(student)
    pair = Pair(
        student,
        materials.teacher,
        materials.n_tokens,
        materials.draft_vocabulary(config.student.draft_vocabulary),
        torch.compile(student.get_decoder(), dynamic=True) if config.optimiser.compile else None,
    )
    trains = config.method not in UNTRAINED
    prompts, policy = usable_data(config, materials) if trains else ([], Policy(config.rollout, 1, {}, {}))
    return Run(
        config,
        config.output,
        pair,
        policy,
        prompts,
        build_objective(config.objective),
        adamw(student, config.optimiser),
        torch.Generator().manual_seed(config.seed),
        validation=shared_validation(materials, config.logging.probe_gamma),
        reference=reference_of(config, materials, pair) if trains else None,
        packed=config.rollout.packed and can_pack(student) and can_pack(materials.teacher),
        teacher_states=materials.teacher_states if config.teacher.reuse_states else None,
        scaler=torch.amp.GradScaler(student.device.type) if config.optimiser.precision == "float16" else None,
    )


def reference_of(config: TrainConfig, materials: Materials, pair: Pair) -> Pair | None:
    """AdaSPEC's reference drafter beside the same teacher, over the ids of the student's head."""
    name = config.objective.reference
    return replace(pair, student=materials.reference(name), decoder=None) if name else None


def usable_data(config: TrainConfig, materials: Materials) -> tuple[list[Prompt], Policy]:
    """The prompts that have the responses which the method needs, and the policy that uses these."""
    rollout = config.rollout
    references = materials.references("train") if needs_references(rollout) else {}
    responses = materials.responses("train") if needs_responses(rollout) else {}
    prompts = [
        prompt
        for prompt in materials.train
        if (not needs_references(rollout) or references.get(prompt.id))
        and (not needs_responses(rollout) or responses.get(prompt.id))
    ]
    if not prompts:
        raise UserError(f"data {config.data.source!r} has no references; choose another rollout.source")
    return prompts, Policy(rollout, config.data.max_response_tokens, references, responses)


def shared_validation(materials: Materials, gamma: int) -> Validation:
    """Made once for all methods of a comparison."""
    if materials.validation_set is None:
        materials.validation_set = make_validation(materials, gamma)
    return materials.validation_set


def build_objective(config: ObjectiveConfig) -> Objective:
    """The objective of a recipe, its numbers cast to the kinds that each loss has by default."""
    kinds = {key: type(default) for name in config.weights for key, default in _known_parameters(name).items()}
    hyper = {key: kinds.get(key, float)(value) for key, value in config.hyper.items()}
    return objective(config.weights, hyper, teacher_temperature=config.teacher_temperature, keep=config.keep)


def _known_parameters(name: str) -> dict[str, Any]:
    from specalign.losses import LOSSES

    return hyper_parameters(name) if name in LOSSES else {}


def resume(run: Run) -> None:
    """Go on from the last checkpoint, if there is one."""
    checkpoints = list_checkpoints(run.path)
    if checkpoints:
        run.position = load_checkpoint(
            checkpoints[-1], run.pair.student, run.optimiser, run.generator, run.scaler
        )
        if distributed.rank() == 0:
            print(f"{run.path}: resuming after step {run.position.step}", flush=True)
    distributed.wait_for_all()
    if distributed.rank() == 0:
        folder.rewind_log(run.path, run.position.step if checkpoints else -1)


def spent(run: Run) -> float:
    """The share of the budget that is spent, by whichever limit is nearest: 1 ends the run."""
    budget, position = run.config.budget, run.position
    if run.config.method in UNTRAINED:
        return 1.0
    return max(
        position.step / budget.steps if budget.steps else 0.0,
        position.train_s / budget.seconds if budget.seconds else 0.0,
        position.n_tokens / budget.tokens if budget.tokens else 0.0,
    )


def loop(run: Run, bar: Bar, begun: float) -> None:
    """Train until the budget is spent."""
    log, position = run.config.logging, run.position
    last_log, losses, tokens = time.monotonic(), 0.0, 0
    while (share := spent(run)) < 1:
        bar.move_to(share)
        started = time.monotonic()
        report = step(run)
        run.step_s = distributed.largest(time.monotonic() - started, run.pair.student.device)
        position.train_s += run.step_s
        position.wall_s = time.monotonic() - begun
        losses, tokens = losses + report.loss * report.n_tokens, tokens + report.n_tokens
        logs = position.step % log.every == 0
        validates = bool(log.validate_every) and position.step % log.validate_every == 0 and spent(run) < 1
        saves = bool(log.checkpoint_every) and position.step % log.checkpoint_every == 0
        if not (logs or validates or saves):
            continue
        optimiser_state = gathered_state(run.optimiser) if saves else {}
        with whole(run.pair.student):
            if distributed.rank() != 0:
                continue
            if logs:
                now = time.monotonic()
                write_log_line(run, bar, report, losses / max(1, tokens), now - last_log)
                last_log, losses, tokens = now, 0.0, 0
            if validates:
                validate(run, begun)
            if saves:
                save_checkpoint(
                    run.path,
                    run.pair.student,
                    optimiser_state,
                    run.generator,
                    position,
                    run.scaler,
                    keep=log.keep_checkpoints,
                )
    if run.config.method not in UNTRAINED:
        with whole(run.pair.student):
            validate(run, begun)


def step(run: Run) -> StepReport:
    """One optimiser step over ``batch * accumulation`` prompts."""
    config, position = run.config.optimiser, run.position
    lr = rate(planned_share(run), config)
    for group in run.optimiser.param_groups:
        group["lr"] = lr
    world, rank = distributed.world_size(), distributed.rank()
    n_prompts = config.batch * config.accumulation * world
    prompts = next_prompts(run.prompts, position.n_prompts, n_prompts, run.config.seed)
    begun = time.monotonic()
    writes = run.config.rollout.student_share > 0
    with memory_advice(run.config, "rollout"), whole(run.pair.student) if writes else nullcontext():
        rows = run.policy.rows(prompts[rank::world], writer(run), next_generator(run))
    rolled_out = time.monotonic()
    with memory_advice(run.config, "update"):
        loss, n_tokens, scored = accumulate(run, rows)
    distributed.sum_gradients(run.parameters)
    (n_on_policy,) = distributed.total([sum(row.on_policy for row in rows)], run.pair.student.device)
    if run.scaler:
        run.scaler.unscale_(run.optimiser)
    norm = float(clip_gradients(run.parameters, config.max_grad_norm))
    may_overflow = run.scaler is not None and run.scaler.get_scale() > 1
    if not math.isfinite(loss) or not (math.isfinite(norm) or may_overflow):
        raise UserError(_explain_non_finite(run, loss, norm, rows))
    with memory_advice(run.config, "update"):  # its state is allocated in the first step
        if run.scaler:
            run.scaler.step(run.optimiser)  # leaves the step out where the scaled loss overflowed
            run.scaler.update()
        else:
            run.optimiser.step()
    run.optimiser.zero_grad(set_to_none=True)
    position.step += 1
    position.n_prompts += n_prompts
    position.n_tokens += n_tokens
    position.n_on_policy += int(n_on_policy)
    return StepReport(
        loss,
        n_tokens,
        max(len(branch.tokens) for row in rows for branch in row.scored),
        norm,
        lr,
        rolled_out - begun,
        time.monotonic() - rolled_out,
        scored,
    )


def next_generator(run: Run) -> torch.Generator:
    """This step's generator on this process, from the run's: that one is the same on every process."""
    seed = int(torch.randint(2**62, (), generator=run.generator))
    return torch.Generator().manual_seed(seed + distributed.rank())


def planned_share(run: Run) -> float:
    """The share of the budget that will be spent when the coming step ends."""
    budget, position = run.config.budget, run.position
    mean_tokens = position.n_tokens / max(1, position.step)
    return max(
        (position.step + 1) / budget.steps if budget.steps else 0.0,
        (position.train_s + run.step_s) / budget.seconds if budget.seconds else 0.0,
        (position.n_tokens + mean_tokens) / budget.tokens if budget.tokens else 0.0,
    )


def accumulate(run: Run, rows: Sequence[Row]) -> tuple[float, int, tuple[tuple[Layout, Tensor | None], ...]]:
    """Backward over all rows, ``batch`` at a time. Returns mean loss, counted tokens, what this process scored.

    Every pass is divided by the token count of the whole step, over all processes, so the sum of gradients is
    that of one batch.
    """
    ordered = sorted(rows, key=lambda row: len(row.trunk))
    size = run.config.optimiser.batch
    device = run.pair.student.device
    groups = [ordered[begin : begin + size] for begin in range(0, len(ordered), size)]
    layouts = [lay_out(group, packed=run.packed, device=device) for group in groups]
    masks = [counted(run, layout) for layout in layouts]
    (n_tokens,) = distributed.total([float(sum(mask.sum() for mask in masks))], device)
    loss_sum, scored = 0.0, []
    for group, layout, mask in zip(groups, layouts, masks, strict=True):
        known = teacher_states_of(run, group, layout)
        with autocast(run):
            chunk_tokens = run.config.objective.chunk_tokens
            losses = per_token_loss(
                run.pair,
                layout,
                run.objective,
                known,
                reference_loss=reference_loss_of(run, layout, known),
                chunk_tokens=chunk_tokens,
            )
        loss = reduce_tokens(losses, mask, n_tokens=n_tokens)
        (run.scaler.scale(loss) if run.scaler else loss).backward()
        loss_sum += float(loss.detach())
        scored.append((layout, known))
    return distributed.total([loss_sum], device)[0], int(n_tokens), tuple(scored)


def teacher_states_of(run: Run, rows: Sequence[Row], layout: Layout) -> Tensor | None:
    """[N, d], or None where the objective looks at labels alone."""
    if not run.objective.needs_teacher:
        return None
    if run.teacher_states is not None:
        return run.teacher_states.of(rows, packed=run.packed)
    with torch.no_grad():
        return states(run.pair.teacher, layout)


@torch.no_grad()
def reference_loss_of(run: Run, layout: Layout, known: Tensor | None) -> Tensor | None:
    """[N] the objective, on all tokens, of the reference drafter; None without one."""
    if run.reference is None:
        return None
    whole, chunk_tokens = replace(run.objective, keep=1.0), run.config.objective.chunk_tokens
    return per_token_loss(run.reference, layout, whole, known, chunk_tokens=chunk_tokens)


def counted(run: Run, layout: Layout) -> Tensor:
    """[N] the tokens that enter the loss: all, or where only labels matter those that the drafter's head has."""
    if run.objective.needs_teacher:
        return torch.ones_like(layout.labels, dtype=torch.bool)
    return columns_of(layout.labels, run.pair.heads()[0]) >= 0


def next_prompts(prompts: Sequence[Prompt], begin: int, n: int, seed: int) -> list[Prompt]:
    """Prompts ``begin .. begin + n`` of an endless stream of epochs, each shuffled by (seed, epoch)."""
    chosen = []
    for place in range(begin, begin + n):
        epoch, index = divmod(place, len(prompts))
        chosen.append(prompts[int(_order(len(prompts), seed, epoch)[index])])
    return chosen


@lru_cache(maxsize=2)
def _order(n: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))


def writer(run: Run) -> Writer:
    """The student as it writes rollouts now."""
    rollout = run.config.rollout
    forks = rollout.branches if rollout.style == "branches" else 1
    return Writer(
        run.pair.student, rollout.temperature, rollout.top_p, run.pair.draft_vocabulary, rollout.batch * forks
    )


def autocast(run: Run) -> Any:
    """Half precision where the recipe or the device asks for it."""
    kind, device = run.config.optimiser.precision, run.pair.student.device
    if kind == "float16":
        return torch.autocast(device.type, dtype=torch.float16)
    if kind == "bfloat16" or (kind == "auto" and device.type == "cuda"):
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


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
            print(f"specalign-train: warning: {warning}", flush=True)
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
    print(
        f"[validation {run.position.step}] alpha={score.alpha:.3f} agree={score.agreement:.3f} "
        f"tau={score.tau:.2f} ({score.n_positions} positions)",
        flush=True,
    )


def keep_best(run: Run, found: dict[str, float]) -> None:
    """Save the weights where the watched metric is better than ever before."""
    watched, best = run.config.logging.best, run.position.best_metric
    if watched is None or (best is not None and found[watched] <= best):
        return
    run.position.best_metric = found[watched]
    save_weights(run.path / BEST, run.pair.student)


def finish(run: Run, materials: Materials, stamp: dict[str, Any], begun: float) -> None:
    """Write the student, then the provenance that says that it is complete."""
    student = run.pair.student
    if run.config.logging.best is not None:
        load_weights(run.path / BEST, student)
    if run.config.optimiser.gradient_checkpointing:
        student.gradient_checkpointing_disable()
    folder.write_model(run.path, student, materials.tokenizer, run.pair.draft_vocabulary)
    config, position = run.config, run.position
    facts = {
        "status": "complete",
        "method": config.method,
        "teacher": config.teacher.model,
        "student_start": config.student.model or config.student.start,
        "trained_tokens": position.n_tokens,
        "steps": position.step,
        "train_s": position.train_s,
        "wall_s": time.monotonic() - begun,
        "prepare_s": dict(materials.seconds),
        "student_share": position.n_on_policy / max(1, position.n_prompts),
        "best": {config.logging.best: position.best_metric} if config.logging.best else {},
        "seed": config.seed,
        "weights_sha256": provenance.weights_sha256(run.path),
        "config": as_table(config),
    }
    write_json(run.path / folder.PROVENANCE, {**facts, **stamp})
    print(f"{run.path}: {config.method} trained, {position.step} steps, {position.n_tokens} tokens", flush=True)


def _explain_non_finite(run: Run, loss: float, norm: float, rows: Sequence[Row]) -> str:
    """Save the batch and say where it is."""
    path = run.path / "non_finite_batch.json"
    write_json(path, {"step": run.position.step + 1, "rows": [asdict(row) for row in rows]})
    return (
        f"step {run.position.step + 1}: loss {loss} and gradient norm {norm} are not finite; the batch is in "
        f"{path}, the last checkpoint is intact; lower optimiser.lr or set optimiser.precision = float32"
    )
