"""What specalign uses of vLLM's server, without a model: a rule in place of the target, counters that count.

Run as a script it stands in for `python -m vllm.entrypoints.openai.api_server`.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

EOS = 2
UNKNOWN = 3
"""A special token: no part of the text."""
ACCEPTED = (2, 0, 1)
"""Accepted tokens of one draft after another."""


def following(last: int) -> int:
    """The target's greedy token after ``last``: ids 3..62, never the end."""
    return (7 * last + 5) % 60 + 3


SAMPLING = (
    *("temperature", "top_k", "top_p", "min_p", "min_tokens", "seed"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty"),
)


@dataclass
class Fake:
    """A server's state: its draft length (0: plain) and what it has counted."""

    gamma: int = 0
    version: str = "0.32.0"
    refused: int = -1
    """A prompt with this id in it is answered with an error."""
    offset: int = 3
    """The first word's id, by this server's tokenizer."""
    ends: list[list[int]] = field(default_factory=list)
    """The ids that each request says an answer ends at."""
    sampling: list[dict[str, Any]] = field(default_factory=list)
    """How each request wants its tokens drawn; a real server fills what is missing from generation_config."""
    drafts: int = 0
    by_position: list[int] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def steps(self, prompt: Sequence[int], n: int) -> Iterator[list[int]]:
        """The first token, then what each step emits; counts as vLLM does, beyond the end too."""
        last = following(prompt[-1])
        made, turn = 1, 0
        yield [last]
        while made < n:
            accepted = min(ACCEPTED[turn % len(ACCEPTED)], self.gamma)
            turn += 1
            self.count(accepted)
            tokens = []
            for _ in range(accepted + 1):
                last = following(last)
                tokens.append(last)
            yield tokens[: n - made]
            made += accepted + 1

    def count(self, accepted: int) -> None:
        with self.lock:
            self.by_position = self.by_position or [0] * self.gamma
            self.drafts += 1
            self.by_position = [count + (place < accepted) for place, count in enumerate(self.by_position)]

    def metrics(self) -> str:
        """In Prometheus's text format."""
        if not self.gamma:
            return "# TYPE vllm:generation_tokens_total counter\nvllm:generation_tokens_total 1.0\n"
        positions = self.by_position or [0] * self.gamma
        values = {
            "num_drafts": self.drafts,
            "num_draft_tokens": self.drafts * self.gamma,
            "num_accepted_tokens": sum(positions),
        }
        lines = []
        for name, value in values.items():
            lines += [f"# TYPE vllm:spec_decode_{name}_total counter"]
            lines += [f'vllm:spec_decode_{name}_total{{engine="0"}} {value}.0']
            lines += [f"# TYPE vllm:spec_decode_{name}_created gauge"]
            lines += [f'vllm:spec_decode_{name}_created{{engine="0"}} 1.7e9']
        name = "vllm:spec_decode_num_accepted_tokens_per_pos"
        lines += [f"# TYPE {name}_total counter"]
        lines += [f'{name}_total{{engine="0",position="{i}"}} {n}.0' for i, n in enumerate(positions)]
        return "\n".join(lines) + "\n"


def start(fake: Fake, port: int = 0) -> ThreadingHTTPServer:
    """Serve in a thread; the address is the server's ``server_address``."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answers: dict[str, str] = {
                "/health": "",
                "/version": json.dumps({"version": fake.version}),
                "/v1/models": json.dumps({"data": [{"id": "target"}]}),
                "/metrics": fake.metrics(),
            }
            self.answer(200 if self.path in answers else 404, answers.get(self.path, ""))

        def do_POST(self) -> None:
            body: dict[str, Any] = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert body["return_token_ids"]
            fake.sampling.append({key: body.get(key) for key in SAMPLING})
            fake.ends.append(body["stop_token_ids"])
            if fake.refused in body["prompt"]:
                self.answer(400, "the prompt is refused")
                return
            self.send_response(200)
            self.end_headers()
            steps = list(fake.steps(body["prompt"], body["max_tokens"]))
            for place, ids in enumerate(steps):
                choice = {
                    "token_ids": ids,
                    "text": "".join(f" w{i - fake.offset}" for i in ids if i != UNKNOWN),
                    "finish_reason": None,
                }
                choice["finish_reason"] = "length" if place == len(steps) - 1 else None
                self.wfile.write(f"data: {json.dumps({'choices': [choice]})}\n\n".encode())
            self.wfile.write(b"data: [DONE]\n\n")

        def answer(self, status: int, text: str) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def _is_head(folder: str) -> bool:
    config = json.loads((Path(folder) / "config.json").read_text())
    return config.get("speculators_model_type") == "eagle3"


def main(words: list[str]) -> None:
    """Serve until killed; a model whose name says so is not found."""
    options = dict(pairwise(words))
    speculative = json.loads(options.get("--speculative-config", "{}"))
    if "missing" in speculative.get("model", ""):
        print("Traceback (most recent call last):\nOSError: missing is not a local folder")
        print("RuntimeError: Engine core initialization failed. See root cause above.")
        sys.exit(1)
    print("speculative config:", json.dumps(speculative))
    config = Path(speculative.get("model", "")) / "config.json"
    if speculative.get("parallel_drafting") and "pard_token" not in json.loads(config.read_text()):
        print("Traceback (most recent call last):\nValueError: parallel drafting needs `pard_token`")
        sys.exit(1)
    if "model" in speculative and _is_head(speculative["model"]) != (speculative["method"] == "eagle3"):
        print(f"ValueError: {speculative['method']} does not fit {speculative['model']}")
        sys.exit(1)
    start(Fake(speculative.get("num_speculative_tokens", 0)), int(options["--port"]))
    threading.Event().wait()


if __name__ == "__main__":
    main(sys.argv[1:])
