"""AdaSPEC's selection in a recipe: tokens with the largest loss beyond a reference drafter's."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from specalign.errors import UserError
from specalign.training import config as configs
from specalign.training import loop, recipe, setup
from specalign.training.config import TrainConfig
from specalign.training.materials import load_materials
from specalign.training.rows import lay_out
from specalign.training.scoring import per_token_loss
from specalign.training.session import train_all

Tiny = Callable[..., TrainConfig]


def test_a_step_trains_on_the_tokens_with_the_largest_reducible_loss(tiny: Tiny, tmp_path: Path) -> None:
    """The step's loss is the mean of the selected tokens' losses, computed here by hand."""
    train_all([tiny("aligned", output=tmp_path / "reference")])
    objective = {"reference": str(tmp_path / "reference"), "keep": 0.5}
    config = tiny(
        "seqkd",
        student={"start": "slice"},
        objective=objective | {"weights": {"forward_kl": 1.0}},
        optimiser={"accumulation": 1},
    )
    run = setup.start_run(config, load_materials(config))
    prompts = loop.next_prompts(run.prompts, 0, config.optimiser.batch, config.seed)
    rows = run.policy.rows(prompts, loop.writer(run), torch.Generator())
    layout = lay_out(
        sorted(rows, key=lambda row: len(row.trunk)), packed=run.packed, device=torch.device("cpu")
    )
    whole = setup.build_objective(configs.ObjectiveConfig({"forward_kl": 1.0}))
    layout, known = loop.with_teacher(run, rows, layout)
    assert run.reference is not None
    with torch.no_grad():
        own, theirs = (per_token_loss(pair, layout, whole, known) for pair in (run.pair, run.reference))
    assert (own - theirs).std() > 1e-3
    n_kept = -(-len(own) // 2)
    expected = own[(own - theirs).topk(n_kept).indices].mean()
    assert loop.step(run).loss == pytest.approx(float(expected), rel=1e-5)


def test_the_reference_stays_as_it_is(tiny: Tiny, tmp_path: Path) -> None:
    train_all([tiny("aligned", output=tmp_path / "reference")])
    before = load_file(tmp_path / "reference" / "model.safetensors")
    train_all([tiny("distillspec", objective={"reference": str(tmp_path / "reference"), "keep": 0.4})])
    after = load_file(tmp_path / "reference" / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_reference_without_a_selection_is_refused(tiny: Tiny) -> None:
    with pytest.raises(UserError, match=r"set objective.keep below 1"):
        recipe.check(tiny("gkd", objective={"reference": "somewhere"}))


def test_a_missing_reference_is_named(tiny: Tiny) -> None:
    config = tiny("gkd", objective={"reference": "no/such/folder", "keep": 0.4})
    with pytest.raises(UserError, match="no/such/folder"):
        train_all([config])
