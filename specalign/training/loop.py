"""The training loop: roll out, score, update."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from specalign import provenance
from specalign.data import Prompt
from specalign.errors import UserError
from specalign.files import write_json
from specalign.losses import reduce_tokens
from specalign.progress import Bar, progress_bar
from specalign.terminal import say
from specalign.training import distributed, folder
from specalign.training.config import UNTRAINED, TrainConfig
from specalign.training.coverage import coverage
from specalign.training.ending import finish, secure
from specalign.training.identity import IDENTITY
from specalign.training.journal import Journal, StepReport, last_validation, tracking, validate
from specalign.training.materials import Materials, data_facts
from specalign.training.memory import memory_advice, recomputing
from specalign.training.optimiser import clip_gradients, gathered_state, rate
from specalign.training.own_drafts import losses_with_drafts
from specalign.training.parallel import Drop, Scored, with_masks
from specalign.training.plugins import NONE, Plugins, identity, plugin_of
from specalign.training.recipe import completed
from specalign.training.rollouts import Writer
from specalign.training.rows import Layout, Row, lay_out
from specalign.training.scoring import columns_of, observed, per_token_loss
from specalign.training.setup import Run, Validations, resume, start_run
from specalign.training.sharding import sum_gradients, whole


def train(
    config: TrainConfig,
    materials: Materials,
    validations: Validations | None = None,
    plugins: Plugins = NONE,
) -> Path:
    """Train one student into ``config.output`` and return that folder, going on from its last checkpoint.

    ``validations`` are what the runs of a command share; None: this run's own.
    """
    config = completed(config)
    path = config.output
    made_of = materials.identity(config) | identity(plugin_of(config.objective, plugins))
    stamp = provenance.stamp(str(materials.device)) | {IDENTITY: made_of}
    if distributed.rank() == 0:
        folder.claim(config, stamp)
    distributed.wait_for_all()
    run = start_run(config, materials, validations, plugins)
    covered = coverage(run.pair, run.validation)
    if covered and distributed.rank() == 0:
        say(f"{path}: {covered}")
    resume(run)
    begun = time.monotonic() - run.position.wall_s
    with tracking(run), progress_bar(f"{config.method} -> {path}", 1.0) as bar:
        if run.position.step == 0:
            with whole(run.pair.student):
                validate(run, begun)
        loop(run, bar, begun)
    optimiser_state = gathered_state(run.optimiser)
    if config.data.n_test:
        materials.responses("test")  # on every process, which wait for each other there
    with whole(run.pair.student):
        if distributed.rank() == 0:
            secure(run, optimiser_state)
            stamp |= {"data": data_facts(materials), "draft_vocabulary": asdict(covered) if covered else {}}
            finish(run, materials, stamp, begun)
    return path


def loop(run: Run, bar: Bar, begun: float) -> None:
    """Train until the budget is spent."""
    journal, position = Journal(run, bar, begun), run.position
    while (share := spent(run)) < 1:
        bar.move_to(share)
        started = time.monotonic()
        report = step(run)
        run.step_s = distributed.largest(time.monotonic() - started, run.pair.student.device)
        position.train_s += run.step_s
        position.wall_s = time.monotonic() - begun
        journal.record(report, ended=spent(run) >= 1)
    if run.config.method not in UNTRAINED:
        with whole(run.pair.student):
            if distributed.rank() == 0 and last_validation(run) != position.step:
                validate(run, begun)


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


def step(run: Run) -> StepReport:
    """One optimiser step over ``batch * accumulation`` prompts."""
    config, position = run.config.optimiser, run.position
    lr = rate(position.step + 1, planned_share(run), config)
    for group in run.optimiser.param_groups:
        group["lr"] = lr
    world, rank = distributed.world_size(), distributed.rank()
    n_prompts = config.batch * config.accumulation * world
    prompts = next_prompts(run.prompts, position.n_prompts, n_prompts, run.config.seed)
    begun = time.monotonic()
    writes = run.config.rollout.student_share > 0
    with (
        memory_advice(run.config, "rollout"),
        run.autocast(),
        whole(run.pair.student) if writes else nullcontext(),
    ):
        generator = next_generator(run)
        rows = run.policy.rows(prompts[rank::world], writer(run), generator)
    rolled_out = time.monotonic()
    with memory_advice(run.config, "update"):
        loss, n_tokens, scored = accumulate(run, rows, generator)
    sum_gradients(run.parameters)
    (n_on_policy,) = distributed.total(
        [sum(row.on_policy or bool(row.anchors) for row in rows)], run.pair.student.device
    )
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


def accumulate(
    run: Run, rows: Sequence[Row], generator: torch.Generator
) -> tuple[float, int, tuple[tuple[Layout, Tensor | None], ...]]:
    """Backward over all rows, ``batch`` at a time. Returns mean loss, counted tokens, what this process scored.

    Every pass is divided by the count of scored positions of the whole step, over all processes, so the sum of
    gradients is that of one batch. Mask tokens are positions of the loss, but no tokens: these are the text's.
    ``generator`` draws the masks of a parallel drafter.
    """
    ordered = sorted(rows, key=lambda row: len(row.trunk))
    size = run.config.optimiser.batch
    device = run.pair.student.device
    groups = [ordered[begin : begin + size] for begin in range(0, len(ordered), size)]
    passes = [laid_out(run, group, generator) for group in groups]
    masks = [counted(run, each.layout) for each in passes]
    n_scored = float(n_counted(run, [each.layout for each in passes], masks))
    n_positions, n_tokens = distributed.total([n_scored, n_text_tokens(run, passes, n_scored)], device)
    parts, scored, n_drafted = [], [], 0
    for group, each, mask in zip(groups, passes, masks, strict=True):
        text, known = with_teacher(run, [row.text for row in group], each.text)
        if any(row.anchors for row in group):
            losses, n_own = losses_with_drafts(run, group, text, known, generator)
            n_drafted += n_own
            loss = losses.sum() / max(n_positions, 1)
        else:
            loss = reduce_tokens(losses_of(run, each, text, known), mask, n_tokens=n_positions)
        (run.scaler.scale(loss) if run.scaler else loss).backward()
        parts.append(loss.detach().double())
        scored.append((text, known))
    loss_sum, n_more = distributed.total([float(sum(parts)), n_drafted], device)
    return loss_sum, int(n_tokens + n_more), tuple(scored)


def losses_of(run: Run, each: Scored, text: Layout, known: Tensor | None) -> Tensor:
    """[N'] the loss at each scored position; ``text`` is that of ``each`` with what a head reads."""
    with run.autocast(), recomputing(run.pair.student):
        return per_token_loss(
            run.pair,
            text if run.masks is None else each.layout,
            run.objective,
            each.spread(known),
            reference_loss=each.spread(reference_loss_of(run, text, known)),
            chunk_tokens=run.config.objective.chunk_tokens,
        )


def laid_out(run: Run, rows: Sequence[Row], generator: torch.Generator) -> Scored:
    """The rows as one pass scores them, with the masks of a parallel drafter."""
    device = run.pair.student.device
    if run.masks is None:
        layout = lay_out(rows, packed=run.packed, device=device)
        return Scored(layout, layout)
    student = run.config.student
    text = lay_out(rows, packed=False, device=device)
    drop = Drop(student.parallel_keep, student.parallel_floor)
    return with_masks(text, run.masks, drop.depths(text.n_tokens, run.masks.most, generator))


def n_text_tokens(run: Run, passes: Sequence[Scored], n_scored: float) -> float:
    """Counted tokens of the text itself, where ``n_scored`` positions are counted with those of masks."""
    if run.masks is None:
        return n_scored
    texts = [each.text for each in passes]
    return float(n_counted(run, texts, [counted(run, text) for text in texts]))


def with_teacher(run: Run, rows: Sequence[Row], layout: Layout) -> tuple[Layout, Tensor | None]:
    """The layout with what a head reads, and the teacher's states [N, d]; None where labels are all that is needed."""
    reads = run.pair.reads
    if not (reads or run.objective.needs_teacher):
        return layout, None
    if run.teacher_states is not None:
        layout, final = run.teacher_states.observed(rows, layout, packed=run.packed, reads=reads)
    else:
        layout, final = observed(run.pair.teacher, layout, reads)
    return layout, final if run.objective.needs_teacher else None


@torch.no_grad()
def reference_loss_of(run: Run, layout: Layout, known: Tensor | None) -> Tensor | None:
    """[N] the objective, on all tokens, of the reference drafter; None without one."""
    if run.reference is None:
        return None
    all_tokens, chunk_tokens = replace(run.objective, keep=1.0), run.config.objective.chunk_tokens
    return per_token_loss(run.reference, layout, all_tokens, known, chunk_tokens=chunk_tokens)


def counted(run: Run, layout: Layout) -> Tensor:
    """[N] the tokens that enter the loss: all, or where only labels matter those that the drafter's head has."""
    if run.objective.needs_teacher:
        return torch.ones_like(layout.labels, dtype=torch.bool)
    return columns_of(layout.labels, run.pair.heads()[0]) >= 0


def n_counted(run: Run, layouts: Sequence[Layout], masks: Sequence[Tensor]) -> int:
    """How many these are; where all are, without waiting for the device."""
    if run.objective.needs_teacher:
        return sum(layout.n_tokens for layout in layouts)
    return int(sum(mask.sum() for mask in masks))


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


def _explain_non_finite(run: Run, loss: float, norm: float, rows: Sequence[Row]) -> str:
    """Save the batch and say where it is."""
    path = run.path / "non_finite_batch.json"
    write_json(path, {"step": run.position.step + 1, "rows": [asdict(row) for row in rows]})
    return (
        f"step {run.position.step + 1}: loss {loss} and gradient norm {norm} are not finite; the batch is in "
        f"{path}, the last checkpoint is intact; lower optimiser.lr or set optimiser.precision = float32"
    )
