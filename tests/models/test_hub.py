"""A name of the hub is looked up once, whatever is then asked of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

from specalign.errors import UserError
from specalign.models import hub
from specalign.models.load import check_weights, load_model, load_tokenizer
from specalign.models.preflight import outline
from specalign.models.tiny import make_model

NAME = "nobody/nothing"
READS: tuple[Callable[[str], object], ...] = (outline, check_weights, load_tokenizer, load_model)


class Hub:
    """A server that answers every request with one status; 0 hangs up."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.status = 404


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """The hub that this test's process talks to, with an empty cache."""
    found = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            if "/resolve/" in self.path:
                found.requests.append(self.path)
            if found.status:
                self.send_response(found.status)
                self.send_header("X-Error-Code", "RepoNotFound")
                self.end_headers()
            self.close_connection = True

        do_GET = do_HEAD

        def log_message(self, *_args: object) -> None:
            """Silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    hub._problem.cache_clear()
    yield found
    hub._problem.cache_clear()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize(
    ("status", "message"), [(404, "the hub has no model of that name"), (0, f"hf download {NAME}")]
)
def test_a_name_that_cannot_be_had_is_looked_up_once(asked: Hub, status: int, message: str) -> None:
    asked.status = status
    for read in READS:
        with pytest.raises(UserError, match=f"cannot load model '{NAME}': .*{message}"):
            read(NAME)
    assert asked.requests == [f"/{NAME}/resolve/main/config.json"]


def test_an_unreachable_hub_is_not_asked_for_another_model(asked: Hub) -> None:
    asked.status = 0
    for name in (NAME, "nobody/else"):
        with suppress(UserError):
            load_tokenizer(name)
    assert len(asked.requests) == 1


def test_what_was_downloaded_serves_without_the_hub(
    asked: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked.status = 0
    folder = tmp_path / "models--nobody--nothing"
    make_model("llama").float().save_pretrained(folder / "snapshots" / "abc")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    monkeypatch.setattr(
        hub, "try_to_load_from_cache", lambda *_: str(folder / "snapshots" / "abc" / "config.json")
    )
    hub.require_on_hub(NAME)
    assert constants.HF_HUB_OFFLINE
    assert len(asked.requests) == 1
