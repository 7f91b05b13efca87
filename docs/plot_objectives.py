"""Draw docs/pictures/*.png: each objective and its gradient over all drafters q on three tokens.

python docs/plot_objectives.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.tri import Triangulation
from torch import Tensor

from specalign.losses import LOSSES

PICTURES = Path(__file__).parent / "pictures"
P = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
CORNERS = np.array([[0.5, 3**0.5 / 2], [0.0, 0.0], [1.0, 0.0]])
"""Where tokens 1 (top), 2 (left) and 3 (right) lie in the plane."""
VARIANTS: dict[str, tuple[str, dict[str, float]]] = {name: (name, {}) for name in LOSSES} | {
    "rank_order_pure": ("rank_order", {"calibration": 0.0, "top_k": 2})
}


def simplex(n_steps: int, margin: float) -> Tensor:
    """Points [n, 3] of a regular grid over the simplex, at least ``margin`` away from its edges."""
    grid = [(i, j, n_steps - i - j) for i in range(n_steps + 1) for j in range(n_steps + 1 - i)]
    points = torch.tensor(grid, dtype=torch.float64) / n_steps
    return margin + (1 - 3 * margin) * points


def loss_and_gradient(variant: str, q: Tensor) -> tuple[Tensor, Tensor]:
    """Loss [n] and its gradient [n, 3] for the logits, for drafters q [n, 3]."""
    name, hyper = VARIANTS[variant]
    logits = (
        q.log()[:, None].repeat(1, 4, 1).requires_grad_()
    )  # four equal positions: a window of accepted_length
    teacher = P.log().expand_as(logits)
    labels = torch.zeros(logits.shape[:-1], dtype=torch.long)
    loss = LOSSES[name](logits, teacher, labels=labels, **hyper)[:, 0]
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    return loss.detach(), gradient.sum(1)


def draw(axes: Axes, variant: str) -> None:
    """Colour and contours: the loss. Arrows: where a small descent step on the logits moves q."""
    q = simplex(90, 0.004)
    x, y = (q.numpy() @ CORNERS).T
    loss, _ = loss_and_gradient(variant, q)
    triangles = Triangulation(x, y)
    levels = np.unique(np.quantile(loss.numpy(), np.linspace(0, 1, 16)))
    axes.tricontourf(triangles, loss.numpy(), levels=levels, cmap="viridis_r", extend="both")
    axes.tricontour(triangles, loss.numpy(), levels=levels[1::2], colors="white", linewidths=0.4)

    q = simplex(11, 0.035)
    _, gradient = loss_and_gradient(variant, q)
    motion = -q * (gradient - (q * gradient).sum(-1, keepdim=True))  # dq of dz = -gradient, through the softmax
    step = motion.numpy() @ CORNERS
    size = np.linalg.norm(step, axis=1, keepdims=True)
    arrows = step / np.sqrt(size * size.max() + 1e-30)  # square roots: weak gradients stay visible
    axes.quiver(*(q.numpy() @ CORNERS).T, *arrows.T, color="black", scale=11, width=0.006)

    axes.plot(*(P.numpy() @ CORNERS), marker="*", color="red", markersize=9)
    for corner, label, shift in zip(
        CORNERS, ("1", "2", "3"), ((0, 0.03), (-0.05, -0.03), (0.05, -0.03)), strict=True
    ):
        axes.annotate(label, corner + shift, ha="center", va="center", fontsize=8)
    axes.set_title(f"{variant}  [{loss.min():.2f}, {loss.max():.2f}]", fontsize=8)
    axes.set_aspect("equal")
    axes.axis("off")


def main() -> None:
    PICTURES.mkdir(exist_ok=True)
    for variant in VARIANTS:
        figure, axes = plt.subplots(figsize=(2.6, 2.4), layout="constrained")
        draw(axes, variant)
        figure.savefig(PICTURES / f"{variant}.png", dpi=110, metadata={"Software": ""})
        plt.close(figure)


if __name__ == "__main__":
    main()
