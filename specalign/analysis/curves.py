"""The learning curves that belong to a benchmark's drafters, as far as they lie on this machine."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from specalign.analysis.study import TRAINING, read_curves
from specalign.curves import LOG, PROVENANCE, Curve, curves_of
from specalign.results import BenchmarkResult, ModelInfo

WEIGHTS = "weights_sha256"


@dataclass(frozen=True)
class Found:
    """What there is of them."""

    curves: list[Curve]
    missing: list[str]
    """Trained drafters whose curve is not here."""


def curves_of_run(folder: Path, result: BenchmarkResult) -> Found:
    """Those of RUN/training.json (``study --training`` keeps it there), else of the drafters' folders.

    A folder counts where it has train.jsonl and still the weights that were measured.
    """
    if (folder / TRAINING).is_file():
        return Found(_kept(folder), [])
    trained = [info for info in result.drafters if info.training]
    here = [info for info in trained if _is_here(info)]
    curves = [
        Curve(_arm(info), info.training.get("seed"), curve.lines)
        for info in here
        for curve in curves_of({info.name: Path(info.source)})
    ]
    return Found(curves, [info.name for info in trained if info not in here])


def _kept(folder: Path) -> list[Curve]:
    return [
        Curve(arm, int(seed.removeprefix("seed-")), [{"kind": "validation", **line} for line in lines])
        for arm, seeds in read_curves(folder).items()
        for seed, lines in seeds.items()
    ]


def _is_here(info: ModelInfo) -> bool:
    path = Path(info.source) / PROVENANCE
    if not (path.is_file() and (path.parent / LOG).is_file()):
        return False
    try:
        return json.loads(path.read_text(encoding="utf-8")).get(WEIGHTS) == info.training.get(WEIGHTS)
    except (ValueError, AttributeError):
        return False


def _arm(info: ModelInfo) -> str:
    """Its name without the seed that drafters of several seeds end with: ``gkd`` of ``gkd-1``."""
    return info.name.removesuffix(f"-{info.training.get('seed')}")
