"""What a trimmed vocabulary can still reach, and what was cut from the data, stands in the provenance."""

from collections.abc import Callable

import pytest
import torch

from specalign.training.config import TrainConfig
from specalign.training.coverage import coverage
from specalign.training.folder import read_provenance
from specalign.training.materials import load_materials
from specalign.training.scoring import Pair
from specalign.training.session import train_all
from specalign.training.setup import start_run

Tiny = Callable[..., TrainConfig]


def test_coverage_is_the_teachers_own_share(tiny: Tiny) -> None:
    """Against the softmax of the whole model; everything is covered by everything, and alpha stays below."""
    config = tiny("aligned", student={"draft_vocabulary": 20})
    materials = load_materials(config)
    run = start_run(config, materials)
    found = coverage(run.pair, run.validation)
    assert found is not None
    ids = run.pair.draft_vocabulary
    assert ids is not None
    assert found.n_ids == len(ids) == 20
    masses, hits = [], []
    for layout, _ in run.validation.batches:
        logits = materials.teacher(layout.input_ids).logits.flatten(0, 1)[layout.predictors]
        masses.append(logits[:, : materials.n_tokens].softmax(-1)[:, ids].sum(-1))
        hits.append(torch.isin(layout.labels, ids))
    assert found.mass == pytest.approx(float(torch.cat(masses).mean()), rel=1e-4)
    assert found.tokens == pytest.approx(float(torch.cat(hits).float().mean()))
    assert run.validation.score(run.pair).alpha <= found.mass + 1e-6
    everything = Pair(run.pair.student, run.pair.teacher, run.pair.n_tokens, torch.arange(run.pair.n_tokens))
    whole = coverage(everything, run.validation)
    assert whole is not None
    assert (whole.tokens, whole.mass) == (1.0, pytest.approx(1, abs=1e-5))
    untrimmed = Pair(run.pair.student, run.pair.teacher, run.pair.n_tokens)
    assert coverage(untrimmed, run.validation) is None


def test_coverage_and_cuts_are_told_and_written(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny(
        "aligned", student={"draft_vocabulary": 20}, data={"max_prompt_tokens": 8, "max_response_tokens": 3}
    )
    train_all([config])
    shown, facts = capsys.readouterr().out, read_provenance(config.output)
    assert "20 ids cover" in shown
    assert facts["draft_vocabulary"]["n_ids"] == 20
    assert 0 < facts["draft_vocabulary"]["mass"] < 1
    # Documents of 4 to 8 words, between two more; references of 3 to 6 words and an end.
    data = facts["data"]
    assert (data["n_train"], data["n_validation"], data["n_truncated_references"]) == (12, 4, 16)
    assert 0 < data["n_truncated_prompts"] < 16
    assert data["n_truncated_prompt_tokens"] >= data["n_truncated_prompts"]
    assert f"{data['n_truncated_prompts']} are cut to data.max_prompt_tokens" in shown
