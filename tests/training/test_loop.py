"""The loop's promises: accumulation is exact, runs resume bit by bit, folders are whole or absent."""

from collections.abc import Callable

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from specalign.training import folder
from specalign.training.config import TrainConfig
from specalign.training.session import train_all

Tiny = Callable[..., TrainConfig]
METHODS = ("untrained", "aligned", "sft", "seqkd", "gkd", "distillspec", "contrastive")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_leaves_a_student_that_transformers_loads(tiny: Tiny, method: str) -> None:
    config = tiny(method)
    train_all([config])
    model = AutoModelForCausalLM.from_pretrained(config.output)
    assert model.config.num_hidden_layers == 2
    assert len(AutoTokenizer.from_pretrained(config.output)) == 63
    facts = folder.read_provenance(config.output)
    assert facts["status"] == "complete"
    assert facts["steps"] == (0 if method in ("untrained", "aligned") else 4)
