"""From tokens to one number: masks, accumulation, selection."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from specalign.losses.reduction import reduce_tokens
from specalign.losses.selection import select_tokens


def test_a_mean_over_unmasked_tokens() -> None:
    mask = torch.tensor([[True, False], [True, True]])
    assert reduce_tokens(torch.tensor([[1.0, 100.0], [2.0, 6.0]]), mask).item() == (1 + 2 + 6) / 3


def test_parts_of_a_batch_add_up_to_the_batch(draw: Callable[..., Tensor]) -> None:
    losses, mask = draw(6, 4), draw(6, 4) > 0
    parts = [reduce_tokens(losses[rows], mask[rows], n_tokens=mask.sum()) for rows in (slice(1), slice(1, 6))]
    torch.testing.assert_close(parts[0] + parts[1], reduce_tokens(losses, mask))


def test_an_empty_mask_gives_zero_with_a_gradient_path() -> None:
    losses = torch.tensor([1.0, torch.nan]).requires_grad_()
    total = reduce_tokens(losses, torch.tensor([False, False]))
    assert total.item() == 0
    (gradient,) = torch.autograd.grad(total, losses)
    assert gradient.tolist() == [0, 0]


def test_selection_keeps_the_largest_losses_and_the_scale_of_the_mean() -> None:
    losses = torch.tensor([[1.0, 5.0], [3.0, 2.0]])
    chosen = select_tokens(losses, None, 0.5)
    assert chosen.tolist() == [[0, 10], [6, 0]]
    assert chosen.mean().item() == (5 + 3) / 2


def test_selection_is_by_reducible_loss() -> None:
    """A large loss that the reference has too cannot be learned: AdaSPEC leaves it out."""
    losses, reference = torch.tensor([9.0, 2.0, 1.0]), torch.tensor([8.9, 0.5, 0.9])
    assert select_tokens(losses, reference, 0.3).tolist() == [0, 2 * 3, 0]


@pytest.mark.parametrize(("keep", "n_kept"), [(1.0, 10), (0.95, 10), (0.41, 5), (0.01, 1)])
def test_the_number_of_selected_tokens_is_exact_under_ties(keep: float, n_kept: int) -> None:
    chosen = select_tokens(torch.ones(10), None, keep)
    assert int(chosen.count_nonzero()) == n_kept
    assert chosen.mean().item() == pytest.approx(1)


def test_no_gradient_flows_through_the_choice() -> None:
    losses = torch.tensor([1.0, 4.0]).requires_grad_()
    reference = torch.tensor([0.0, 0.0]).requires_grad_()
    chosen = select_tokens(losses, reference, 0.5).sum()
    gradients = torch.autograd.grad(chosen, (losses, reference), allow_unused=True)
    assert gradients[0].tolist() == [0, 2]
    assert gradients[1] is None


@pytest.mark.parametrize("keep", [0, -0.5, 1.5])
def test_a_share_outside_its_range_is_refused(keep: float) -> None:
    with pytest.raises(ValueError, match="keep"):
        select_tokens(torch.ones(4), None, keep)
