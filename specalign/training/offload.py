"""A teacher that is there only until its responses are written and its states kept: then it makes room for training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from safetensors.torch import save_file

from specalign.data import Prompt
from specalign.errors import UserError
from specalign.files import atomic_path
from specalign.models.heads import head_of
from specalign.models.released import is_released, release
from specalign.progress import progress_bar
from specalign.terminal import say
from specalign.training.config import UNTRAINED, TrainConfig
from specalign.training.distributed import rank, wait_for_all, world_size
from specalign.training.loop import next_prompts
from specalign.training.materials import HELD_APART, Materials
from specalign.training.plugins import NONE, Plugins
from specalign.training.rows import Row
from specalign.training.setup import build_objective, usable_data
from specalign.training.validation import held_out_rows


def score_and_release(materials: Materials, configs: Sequence[TrainConfig], plugins: Plugins = NONE) -> None:
    """Keep all states that the runs of ``configs`` will ask for, and give the teacher back but for its head.

    Where they are on disk already, with the head, the teacher was not loaded. Raises UserError where
    ``teacher.reuse_gib`` has no room for them.
    """
    rows = needed_rows(materials, configs, plugins)
    for config in configs:
        if not config.student.model:
            materials.student(config.student)  # a slice, from the teacher's own layers
    wait_for_all()
    kept = materials.teacher_states
    missing = kept.missing(rows)
    _require_room(materials, missing)
    if missing:
        materials.wake()
        mine = missing[rank() :: world_size()] if kept.folder else missing
        with progress_bar("teacher's states", sum(row.n_tokens for row in mine)) as bar:
            kept.fill(mine, bar.advance)
    if not is_released(materials.teacher):
        _keep_head(materials)
        release(materials.teacher)
    wait_for_all()
    if rank() == 0:
        n_tokens = sum(row.n_tokens for row in rows)
        say(f"specalign-train: the teacher's states of {n_tokens:,} tokens are kept, its memory is given back")


def needed_rows(materials: Materials, configs: Sequence[TrainConfig], plugins: Plugins = NONE) -> list[Row]:
    """The fixed rows that validation, test and training will ask the teacher's states of, each once."""
    held_out = [split for split in HELD_APART[1:] if materials.prompts(split)]
    rows = [row for split in held_out for row in held_out_rows(materials, split)[1]]
    for config in configs:
        if config.method in UNTRAINED or not build_objective(config.objective, plugins).needs_teacher:
            continue
        prompts, policy = usable_data(config, materials)
        found = {prompt.id: policy.fixed(prompt, materials.teacher) for prompt in prompts}
        rows += [found[prompt.id] for prompt in met(config, prompts, found)]
    return list(dict.fromkeys(rows))


def met(config: TrainConfig, prompts: Sequence[Prompt], rows: Mapping[str, Row]) -> list[Prompt]:
    """The prompts that training comes to within its budget of steps or tokens; all, where it is one of seconds."""
    budget, found = config.budget, dict[str, Prompt]()
    size = config.optimiser.batch * config.optimiser.accumulation * world_size()
    n_steps = n_tokens = 0
    while len(found) < len(prompts) and not 0 < budget.steps <= n_steps and not 0 < budget.tokens <= n_tokens:
        chosen = next_prompts(prompts, n_steps * size, size, config.seed)
        found |= {prompt.id: prompt for prompt in chosen}
        n_tokens += sum(rows[prompt.id].n_tokens for prompt in chosen)
        n_steps += 1
    return list(found.values())


def _require_room(materials: Materials, missing: Sequence[Row]) -> None:
    kept, teacher = materials.teacher_states, materials.teacher
    width = head_of(teacher).weight.shape[1]
    n_bytes = kept.n_bytes + sum(row.n_tokens for row in missing) * width * teacher.dtype.itemsize
    if n_bytes > kept.capacity:
        raise UserError(
            f"teacher.offload = after-states keeps the states of every token, {n_bytes / 2**30:.2f} GiB with those "
            f"that are there: set teacher.reuse_gib to that, not {materials.config.teacher.reuse_gib:g}"
        )


def _keep_head(materials: Materials) -> None:
    """For later commands, where states are on disk: they need no more of the teacher."""
    if materials.teacher_states.folder is None or rank() != 0 or materials.head_file.exists():
        return
    head = head_of(materials.teacher)
    tensors = {"weight": head.weight} | ({} if head.bias is None else {"bias": head.bias})
    with atomic_path(materials.head_file) as partial:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, partial)
