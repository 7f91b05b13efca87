"""What a CUDA device is told before models run on it; the device itself is a stand-in."""

from __future__ import annotations

import pytest
import torch

from specalign.decoding.clock import Clock
from specalign.models.devices import multiply_in_tf32, prepare_device


def test_a_cuda_device_becomes_the_current_one_without_cudnn_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    before = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        torch.backends.cuda.enable_cudnn_sdp(True)
        prepare_device(torch.device("cpu"))
        assert torch.backends.cuda.cudnn_sdp_enabled()
        prepare_device(torch.device("cuda:1"))
        assert not torch.backends.cuda.cudnn_sdp_enabled()
        assert torch.backends.cuda.flash_sdp_enabled()
        assert chosen == [torch.device("cuda:1")]
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def test_float32_products_are_tf32s_on_cuda_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", told.append)
    multiply_in_tf32(torch.device("cpu"))
    assert not told
    multiply_in_tf32(torch.device("cuda"))
    assert told == ["high"]


def test_marks_are_made_in_the_devices_own_order_of_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not on the stream of whichever device is the current one."""
    recorded: list[str] = []

    class Event:
        def __init__(self, **options: bool) -> None:
            assert options == {"enable_timing": True}

        def record(self, stream: str) -> None:
            recorded.append(stream)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    Clock(torch.device("cuda:1")).mark()
    assert recorded == ["stream of cuda:1"]
