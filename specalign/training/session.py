"""One command: its runs one after the other, over materials that are loaded once."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import cache, partial

from transformers.utils.logging import disable_progress_bar

from specalign.errors import UserError
from specalign.folders import hold
from specalign.preflight import require_passed
from specalign.terminal import say
from specalign.training.config import TrainConfig
from specalign.training.distributed import process_group, rank, refuse_plugins, wait_for_all
from specalign.training.ending import require_intact
from specalign.training.folder import is_complete
from specalign.training.identity import model_identity, models_of, require_same, rows_identity
from specalign.training.loop import train
from specalign.training.materials import load_data, load_materials
from specalign.training.offload import score_and_release
from specalign.training.plugins import NONE, Plugins, identity, plugin_of
from specalign.training.preflight import findings
from specalign.training.recipe import check, completed, with_prompt
from specalign.training.sharding import require_divisible
from specalign.training.validation import make_validation


def train_all(configs: Sequence[TrainConfig], plugins: Plugins = NONE) -> None:
    """Train each config, on every process of the launcher. Nothing is loaded where all runs are complete.

    ``plugins`` are objectives that a caller has as functions; those that are only named are imported.
    Raises UserError where another command writes into one of their folders.
    """
    configs = [with_prompt(completed(config)) for config in configs]
    for config in configs:
        check(config)
        refuse_plugins(config.optimiser.precision)
    with process_group(configs[0].device), ExitStack() as held:
        for config in configs:
            require_divisible(config.optimiser.sharded)
        if rank() == 0:
            for config in configs:
                held.enter_context(hold(config.output, "specalign-train"))
        _train_all(configs, plugins)


def _train_all(configs: Sequence[TrainConfig], plugins: Plugins) -> None:
    unfinished = [config for config in configs if not is_complete(config)]
    wait_for_all()  # before rank 0 claims folders that the others still look at
    leave_complete([config for config in configs if config not in unfinished], plugins)
    if unfinished:
        disable_progress_bar()  # transformers' own bars, one for every file: ours tell what takes time
        require_passed(findings(unfinished, data=False, plugins=plugins))
        materials = load_materials(configs[0])  # what is shared is the first run's, be that one complete or not
        for config in unfinished:
            own = identity(plugin_of(config.objective, plugins))
            require_same(config, materials.identity(config) | own)
        if materials.config.teacher.offload != "none":
            score_and_release(materials, unfinished, plugins)
        validations = cache(partial(make_validation, materials, "validation"))
        for config in unfinished:
            train(config, materials, validations, plugins)


def leave_complete(configs: Sequence[TrainConfig], plugins: Plugins = NONE) -> None:
    """Say that these runs are complete, where they are: the weights as they wrote them, from the same data and models.

    Data or models that are not there any more cannot be compared, which is said.
    """
    for config in configs:
        require_intact(config.output)
        caveat = ""
        try:
            found = rows_identity(load_data(config.data))
            found |= {
                kind: model_identity(name, trust_remote_code=config.teacher.trust_remote_code)
                for kind, name in models_of(config).items()
            }
            found |= identity(plugin_of(config.objective, plugins))
        except UserError as error:
            found, caveat = {}, f"; what it was made of cannot be looked at: {error}"
        require_same(config, found)
        if rank() == 0:
            say(
                f"{config.output}: complete already, nothing to do (--overwrite trains it again){caveat}",
            )
