"""A step waits for the device once, to read what the rule decided: proved with fake tensors, without a GPU.

Fake tensors have no values, so whatever needs one (``.item()``, ``bool(tensor)``, a shape that depends on data)
raises; on a GPU each of these stops the host until the device has caught up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from specalign.decoding import RULES, EagleDrafter, Masks, ModelDrafter, ParallelDrafter, make_stepper
from specalign.decoding.drafters import Draft
from specalign.decoding.judge import Judge
from specalign.decoding.sampling import Sampling
from specalign.decoding.session import Session
from specalign.decoding.verification import greedy
from specalign.models.eagle import EagleHead
from tests.decoding.kinds import tiny_head

Build = Callable[..., PreTrainedModel]
RAGGED = [[5, 9, 31, 7], [3, 8]]
GREEDY, SAMPLED = Sampling(0.0), Sampling(0.8, top_k=5, top_p=0.9)


class NoBlockingCopies(TorchFunctionMode):
    """Refuses ``torch.tensor(values, device=...)``: on CUDA it waits for all queued work."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in (torch.tensor, torch.as_tensor) and args[0] and (kwargs or {}).get("device") is not None:
            raise AssertionError("a blocking copy from host to device")
        return func(*args, **(kwargs or {}))


@pytest.fixture
def fake() -> Iterator[FakeTensorMode]:
    """Tensors without values, as inside :func:`specalign.decoding.generate`."""
    with FakeTensorMode(allow_non_fake_inputs=False) as mode, torch.inference_mode():
        yield mode


def prompts_of(family: str) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts, and what the decoder has read of them."""
    return ([RAGGED[0]], [[0]]) if family == "t5" else (RAGGED, RAGGED)


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("trimmed", [False, True])
@pytest.mark.parametrize("parallel", [False, True])
def test_drafting_and_scoring_never_wait(
    family: str, sampling: Sampling, trimmed: bool, parallel: bool, build: Build
) -> None:
    prompts, sequences = prompts_of(family)
    real, mode = build(family), FakeTensorMode()
    with mode:
        model = type(real)(real.config).eval()
    with mode, torch.inference_mode():
        ids = torch.arange(0, 40, 3) if trimmed else None
        session = Session.start(make_stepper(model), prompts, 12)
        drafter = ParallelDrafter(model, Masks(4, 8), ids) if parallel else ModelDrafter(model, ids)
        drafting = drafter.start(prompts, 12, sampling, session)
        drafting.ready()
        with NoBlockingCopies():
            draft = drafting.draft(sequences, [3] * len(prompts), None)
            logits = session.extend(torch.cat([draft.ids[:, :1], draft.ids], 1))
    assert draft.ids.shape == (len(prompts), 3)
    assert logits.shape == (len(prompts), 4, 40)


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("trimmed", [False, True])
def test_a_head_never_waits(sampling: Sampling, trimmed: bool, build: Build) -> None:
    """Drafting after a prefill, and after a step in which rows accepted different numbers of tokens."""
    real, mode = build("llama"), FakeTensorMode()
    head_real = tiny_head(real, whole=not trimmed)
    with mode:
        model, head = type(real)(real.config).eval(), EagleHead(head_real.config).eval()
    with mode, torch.inference_mode():
        session = Session.start(make_stepper(model), RAGGED, 12, reads=head.config.reads)
        drafting = EagleDrafter(head).start(RAGGED, 12, sampling, session)
        drafting.ready()
        with NoBlockingCopies():
            drafting.draft(RAGGED, [3, 3], None)
            session.extend(torch.zeros(2, 4, dtype=torch.long))
            grown = [[*RAGGED[0], 4, 4], [*RAGGED[1], 4]]
            session.rollback([len(row) - 1 for row in grown])
            draft = drafting.draft(grown, [3, 3], None)
    assert draft.ids.shape == (2, 3)
    assert draft.q is None or draft.q.shape == (2, 3, 40)


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_decides_on_the_device(rule: str, fake: FakeTensorMode) -> None:
    p, q = torch.rand(2, 4, 7), torch.rand(2, 3, 7)
    counts = torch.ones(2, dtype=torch.long)
    accepted, own = RULES[rule](p, q, torch.zeros(2, 3, dtype=torch.long), counts=counts)
    assert accepted.shape == own.shape == (2,)
    greedy(p.argmax(-1), q.argmax(-1), counts)


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("n", [0, 3])
def test_the_outcome_is_read_once(sampling: Sampling, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All rows, accepted tokens, overlaps and margins come in a single table."""
    reads: list[tuple[int, ...]] = []
    tolist = torch.Tensor.tolist

    def counted(tensor: torch.Tensor) -> Any:
        reads.append(tuple(tensor.shape))
        return tolist(tensor)

    monkeypatch.setattr(torch.Tensor, "tolist", counted)
    q = torch.softmax(torch.randn(5, n, 7), -1)
    draft = Draft(torch.zeros(5, n, dtype=torch.long), [n, 1, 0, n, n][:5] if n else [0] * 5, q)
    Judge(sampling, RULES["token"], None, margins=True)(torch.randn(5, n + 1, 7), draft)
    assert reads == [(5, 4 + 2 * n + n + 1)]


def test_the_read_itself_and_any_other_is_noticed(fake: FakeTensorMode) -> None:
    """The proof has power: on fake tensors reading a value raises."""
    draft = Draft(torch.zeros(1, 1, dtype=torch.long), [1], torch.rand(1, 1, 7))
    with pytest.raises(DataDependentOutputException):
        Judge(SAMPLED, RULES["token"], None)(torch.rand(1, 2, 7), draft)
    with pytest.raises(DataDependentOutputException):
        bool(torch.rand(1) > 0.5)
    with pytest.raises(AssertionError, match="blocking copy"), NoBlockingCopies():
        torch.tensor([1], device="cpu")
