"""From load probes to the rows of the load table. Pure: the same probes give the same rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from specalign.metrics.load import fitted_draft_ratio, percentiles_ms, predicted_batch_speedup
from specalign.probes import LoadProbe, Probe
from specalign.results import LOOKUPS, TARGET, LoadRow


def load_rows(probes: Sequence[Probe]) -> list[LoadRow]:
    """One row a (method, gamma, concurrency), in the order of measurement."""
    loads = [probe for probe in probes if isinstance(probe, LoadProbe) and probe.n_tokens]
    plain = {probe.concurrency: probe for probe in loads if probe.method == TARGET}
    return [_row(probe, plain, [other for other in loads if _same(other, probe)]) for probe in loads]


def _row(probe: LoadProbe, plain: Mapping[int, LoadProbe], own: Sequence[LoadProbe]) -> LoadRow:
    against = plain.get(probe.concurrency) if probe.method != TARGET else None
    speed = np.array(probe.n_tokens) / np.array(probe.wall_s)
    return LoadRow(
        method=probe.method,
        gamma=probe.gamma,
        concurrency=probe.concurrency,
        n_requests=len(probe.n_tokens) + probe.n_failed,
        n_failed=probe.n_failed,
        tokens_per_s=sum(probe.n_tokens) / probe.total_s,
        ttft_ms=percentiles_ms(probe.first_s),
        tpot_ms=percentiles_ms(_per_token(probe)),
        request_tokens_per_s=[float(value) for value in np.percentile(speed, (50, 95, 99))],
        speedup=_throughput(probe) / _throughput(against) if against else None,
        decode_speedup=decode_s(against) / decode_s(probe) if against else None,
        predicted_speedup=_predicted(probe, plain, own) if against else None,
    )


def _predicted(probe: LoadProbe, plain: Mapping[int, LoadProbe], own: Sequence[LoadProbe]) -> float | None:
    """With the acceptance of all its loads, and c from the lowest concurrency that both were measured at.

    None for prompt lookup: it does not draft in every step, and the counters do not say in how many.
    """
    if probe.method in LOOKUPS:
        return None
    shared = [load for load in own if load.concurrency in plain]
    accepted = sum(load.counts.n_accepted for load in own if load.counts)
    drafts = sum(load.counts.n_drafts for load in own if load.counts)
    if not drafts or not shared:
        return None
    tau = 1 + accepted / drafts
    steps = {concurrency: decode_s(load) for concurrency, load in plain.items()}
    lowest = min(shared, key=lambda load: load.concurrency)
    c = fitted_draft_ratio(steps, lowest.concurrency, probe.gamma, decode_s(lowest) * tau)
    return predicted_batch_speedup(steps, probe.concurrency, probe.gamma, tau=tau, c=c)


def decode_s(probe: LoadProbe) -> float:
    """Seconds a token after the first, pooled over requests."""
    tokens = sum(probe.n_tokens) - len(probe.n_tokens)
    return (sum(probe.wall_s) - sum(probe.first_s)) / max(1, tokens)


def _per_token(probe: LoadProbe) -> list[float]:
    requests = zip(probe.n_tokens, probe.first_s, probe.wall_s, strict=True)
    return [(wall - first) / (n - 1) for n, first, wall in requests if n > 1]


def _throughput(probe: LoadProbe) -> float:
    return sum(probe.n_tokens) / probe.total_s


def _same(one: LoadProbe, other: LoadProbe) -> bool:
    return (one.method, one.gamma) == (other.method, other.gamma)
