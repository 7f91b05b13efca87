"""A running vLLM server, asked for completions of token ids and for what it counted."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import requests
from prometheus_client.parser import text_string_to_metric_families

from specalign.errors import UserError
from specalign.records import DraftCounts

LEAST_VERSION = (0, 32)
"""The vLLM that this was tested with; earlier ones lack draft models, or sampled drafts."""
SETTLE_S = 0.05
"""Seconds between two looks at counters that a server updates after its last answer."""
COUNTERS = {
    "vllm:spec_decode_num_drafts": "n_drafts",
    "vllm:spec_decode_num_draft_tokens": "n_drafted",
    "vllm:spec_decode_num_accepted_tokens": "n_accepted",
}
BY_POSITION = "vllm:spec_decode_num_accepted_tokens_per_pos"
GENERATED = "vllm:generation_tokens"
NEUTRAL = {
    "min_p": 0.0,
    "min_tokens": 0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
"""Filters and penalties that are off here: left out, a server takes them from the model's generation_config."""


@dataclass(frozen=True)
class Request:
    """What to decode, and how."""

    input_ids: Sequence[int]
    max_new_tokens: int
    temperature: float = 0.0
    top_k: int = 0
    """0: no top-k filter."""
    top_p: float = 1.0
    seed: int = 0
    ends: Sequence[int] = ()
    """Tokens that end the answer besides those that the server knows."""


@dataclass(frozen=True)
class Answer:
    """What came back, timed on our side."""

    token_ids: list[int]
    text: str
    finish_reason: Literal["eos", "length"]
    first_s: float
    """Seconds to the first token (TTFT): queueing and the prompt."""
    wall_s: float
    n_parts: int
    """Parts that the answer came in: one a step, unless the server put some together."""
    n_last: int
    """Tokens of the last part."""


@dataclass(frozen=True)
class Server:
    """A server that answered: where it is and what it says of itself."""

    url: str
    model: str
    version: str


def connect(url: str) -> Server:
    """Ask a server for its model and version. UserError where none answers, or it is too old."""
    url = url.rstrip("/").removesuffix("/v1")
    version = str(_get(url, "/version").json().get("version", "unknown"))
    require_version(version, f"the server at {url}")
    models = _get(url, "/v1/models").json()["data"]
    if not models:
        raise UserError(f"the server at {url} serves no model")
    return Server(url, str(models[0]["id"]), version)


def require_version(version: str, who: str) -> None:
    """Raise UserError for a vLLM older than LEAST_VERSION; development versions pass."""
    numbers = version.split("+")[0].split(".")[:2]
    if all(part.isdecimal() for part in numbers) and tuple(map(int, numbers)) < LEAST_VERSION:
        least = ".".join(map(str, LEAST_VERSION))
        raise UserError(f"{who} is vLLM {version}; vLLM {least} or newer is needed")


def complete(server: Server, request: Request) -> Answer:
    """One streamed completion. Raises RuntimeError with the server's words where it refuses or fails."""
    began = time.perf_counter()
    first = 0.0
    parts: list[list[int]] = []
    text, finish = "", ""
    for choice in _stream(server, request):
        if new := choice.get("token_ids"):
            first = first or time.perf_counter() - began
            parts.append(new)
        text += choice.get("text") or ""
        finish = choice.get("finish_reason") or finish
    wall = time.perf_counter() - began
    if not parts:
        raise RuntimeError(f"{server.url} answered without token ids")
    ids = [token for part in parts for token in part]
    reason: Literal["eos", "length"] = "length" if finish == "length" else "eos"
    return Answer(ids, text, reason, first, wall, len(parts), len(parts[-1]))


def _stream(server: Server, request: Request) -> Iterator[dict[str, Any]]:
    """The choices of the answer's events, as they come."""
    body: dict[str, Any] = {
        "model": server.model,
        "prompt": list(request.input_ids),
        "max_tokens": request.max_new_tokens,
        "temperature": request.temperature,
        "top_k": request.top_k or -1,
        "top_p": request.top_p,
        "seed": request.seed % 2**31,
        **NEUTRAL,
        "stop_token_ids": list(request.ends),
        "stream": True,
        "return_token_ids": True,
    }
    try:
        with requests.post(f"{server.url}/v1/completions", json=body, stream=True, timeout=600) as answer:
            if answer.status_code != requests.codes.ok:
                raise RuntimeError(f"{server.url} answered {answer.status_code}: {answer.text[:300]}")
            for line in answer.iter_lines(chunk_size=1):
                data = line.decode().removeprefix("data: ")
                if data and data != "[DONE]":
                    yield _choice(server, json.loads(data))
    except requests.RequestException as error:
        raise RuntimeError(f"{server.url} broke off: {type(error).__name__}") from None


def _choice(server: Server, event: dict[str, Any]) -> dict[str, Any]:
    if "error" in event:
        raise RuntimeError(f"{server.url}: {event['error']}")
    return event["choices"][0]


def read_counts(server: Server) -> DraftCounts | None:
    """What the server counted since it began; None where it drafts nothing."""
    values, positions = _counters(server.url)
    if "n_drafts" not in values:
        return None
    counted = {name: int(values.get(name, 0)) for name in COUNTERS.values()}
    return DraftCounts(**counted, accepted_by_position=[positions[place] for place in sorted(positions)])


def settled_counts(server: Server) -> DraftCounts | None:
    """The same when two looks in a row agree: the counters trail the last answer a little."""
    before = _counters(server.url)
    for _ in range(40):
        time.sleep(SETTLE_S)
        now = _counters(server.url)
        if now == before:
            break
        before = now
    return read_counts(server)


def difference(after: DraftCounts, before: DraftCounts) -> DraftCounts:
    """What was counted in between."""
    by_position = zip(after.accepted_by_position, before.accepted_by_position, strict=True)
    return DraftCounts(
        after.n_drafts - before.n_drafts,
        after.n_drafted - before.n_drafted,
        after.n_accepted - before.n_accepted,
        [now - then for now, then in by_position],
    )


def _counters(url: str) -> tuple[dict[str, float], dict[int, int]]:
    """Totals over the server's engines, by our names and by draft position."""
    totals: dict[str, float] = {}
    positions: dict[int, int] = {}
    for family in text_string_to_metric_families(_get(url, "/metrics").text):
        for sample in family.samples:
            if not sample.name.endswith("_total") or not math.isfinite(sample.value):
                continue
            name = sample.name.removesuffix("_total")
            if name == BY_POSITION:
                place = int(sample.labels["position"])
                positions[place] = positions.get(place, 0) + int(sample.value)
            elif name in COUNTERS or name == GENERATED:
                ours = COUNTERS.get(name, name)
                totals[ours] = totals.get(ours, 0.0) + sample.value
    return totals, positions


def _get(url: str, path: str) -> requests.Response:
    try:
        answer = requests.get(url + path, timeout=30)
    except requests.RequestException as error:
        raise UserError(f"no server answers at {url} ({type(error).__name__})") from None
    if answer.status_code != requests.codes.ok:
        raise UserError(f"{url}{path} answered {answer.status_code}: is this a vLLM server?")
    return answer
