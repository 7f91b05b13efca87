"""A server under load: so many requests at a time, each next one when another has ended (a closed loop)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice

from specalign.probes import LoadProbe
from specalign.serving.client import Answer, Request, Server, complete, difference, settled_counts

ROUNDS = 2
"""Requests of each of the concurrent streams, where there are fewer prompts than that."""


def measure_load(
    server: Server, requests: Sequence[Request], concurrency: int, *, method: str, gamma: int
) -> LoadProbe:
    """Answer every request, ``concurrency`` at a time; requests are repeated where they are few."""
    jobs = list(islice(cycle(requests), max(len(requests), ROUNDS * concurrency)))
    before = settled_counts(server)
    began = time.perf_counter()
    with ThreadPoolExecutor(concurrency) as pool:
        answers = list(pool.map(lambda request: _attempt(server, request), jobs))
    total_s = time.perf_counter() - began
    after = settled_counts(server)
    good = [answer for answer in answers if answer]
    return LoadProbe(
        method,
        gamma,
        concurrency,
        n_failed=len(answers) - len(good),
        n_tokens=[len(answer.token_ids) for answer in good],
        first_s=[answer.first_s for answer in good],
        wall_s=[answer.wall_s for answer in good],
        total_s=total_s,
        counts=difference(after, before) if after and before else None,
    )


def _attempt(server: Server, request: Request) -> Answer | None:
    try:
        return complete(server, request)
    except RuntimeError:
        return None
