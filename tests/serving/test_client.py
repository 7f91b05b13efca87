"""What is asked of a vLLM server, and what its answers and counters mean."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from specalign.errors import UserError
from specalign.records import DraftCounts
from specalign.serving.client import Request, complete, connect, difference, read_counts, settled_counts
from specalign.serving.load import measure_load
from specalign.serving.server import require_vllm, serving
from tests.serving.fake_vllm import Fake, following

Serve = Callable[[Fake], str]


def test_a_completion_is_the_servers_token_ids(serve: Serve) -> None:
    answer = complete(connect(serve(Fake())), Request([1, 9], 5))
    expected = [following(9)]
    for _ in range(4):
        expected.append(following(expected[-1]))
    assert answer.token_ids == expected
    assert answer.finish_reason == "length"
    assert 0 < answer.first_s <= answer.wall_s
    assert (answer.n_parts, answer.n_last) == (5, 1)


def test_counters_are_read_by_engine_and_position_and_not_their_time_of_creation(serve: Serve) -> None:
    server = connect(serve(Fake(gamma=3)))
    before = settled_counts(server)
    assert before == DraftCounts(0, 0, 0, [0, 0, 0])
    answer = complete(
        server, Request([1, 9], 8)
    )  # 1, then 2 + 1, 0 + 1, 1 + 1, 2 + 1 of which 1 is beyond the end
    assert (answer.n_parts, answer.n_last) == (1 + 4, 1)
    after = settled_counts(server)
    assert after is not None
    assert difference(after, before) == DraftCounts(4, 12, 5, [3, 2, 0])


def test_a_plain_server_has_no_draft_counters(serve: Serve) -> None:
    assert read_counts(connect(serve(Fake()))) is None


def test_load_repeats_few_prompts_and_counts_failures(serve: Serve) -> None:
    server = connect(serve(Fake(gamma=3, refused=60)))
    prompts = [Request([1, 9], 6), Request([1, 60], 6)]
    probe = measure_load(server, prompts, 4, method="small", gamma=3)
    assert (len(probe.n_tokens), probe.n_failed) == (4, 4)
    assert set(probe.n_tokens) == {6}
    assert probe.counts is not None
    assert probe.counts.n_drafts == 4 * 3


def test_a_dead_server_is_one_clear_line(serve: Serve) -> None:
    with pytest.raises(UserError, match=r"no server answers at http://127\.0\.0\.1:9"):
        connect("http://127.0.0.1:9")


def test_an_old_server_is_one_clear_line(serve: Serve, vllm_python: Callable[[str], str]) -> None:
    with pytest.raises(UserError, match=r"is vLLM 0\.13\.0; vLLM 0\.32 or newer is needed"):
        connect(serve(Fake(version="0.13.0")))
    with pytest.raises(UserError, match=r"is vLLM 0\.9\.2; vLLM 0\.32 or newer"):
        require_vllm(vllm_python("0.9.2"))


def test_development_versions_pass(serve: Serve) -> None:
    assert connect(serve(Fake(version="dev"))).version == "dev"


def test_a_python_without_vllm_is_one_clear_line(vllm_python: Callable[[str], str]) -> None:
    with pytest.raises(UserError, match="has no vLLM"):
        require_vllm(vllm_python(""))
    with pytest.raises(UserError, match="cannot run '/no/python'"):
        require_vllm("/no/python")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_run_that_is_told_to_end_leaves_no_server(
    vllm_python: Callable[[str], str], tmp_path: Path, number: signal.Signals
) -> None:
    urls = []
    before = signal.getsignal(number)

    def told_to_end() -> None:
        with serving(vllm_python("0.32.0"), [], tmp_path / "log") as server:
            urls.append(server.url)
            os.kill(os.getpid(), number)
            time.sleep(5)

    with pytest.raises(KeyboardInterrupt):
        told_to_end()
    assert signal.getsignal(number) == before
    with pytest.raises(UserError, match="no server answers"):
        connect(urls[0])
