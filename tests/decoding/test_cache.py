"""A cache that is not used any more is gone at once: nothing waits for Python's garbage collection."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator

import pytest
from transformers import PreTrainedModel

from specalign.decoding import ModelDrafter, generate
from specalign.decoding.cache import RowCache


@pytest.fixture
def live(monkeypatch: pytest.MonkeyPatch) -> Iterator[weakref.WeakSet[RowCache]]:
    """The caches that are alive, with garbage collection switched off."""
    caches: weakref.WeakSet[RowCache] = weakref.WeakSet()
    begin = RowCache.__init__

    def counted(self: RowCache, *sizes: int) -> None:
        begin(self, *sizes)
        caches.add(self)

    monkeypatch.setattr(RowCache, "__init__", counted)
    gc.collect()
    gc.disable()
    yield caches
    gc.enable()


@pytest.mark.parametrize("drafted", [False, True])
def test_no_dead_cache_is_left(
    build: Callable[..., PreTrainedModel], family: str, drafted: bool, live: weakref.WeakSet[RowCache]
) -> None:
    target = build(family)
    drafter = ModelDrafter(build(family, noise=0.05)) if drafted else None
    prompts = [[5, 9, 31, 7, 7, 12, 9], [3, 8, 20], [17]]
    generate(target, drafter, prompts, max_new_tokens=4, eos=(2, 7))
    assert len(live) == 0
