"""The part of a recipe that says how training proceeds: optimiser, budget, what is logged, and what remains of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from specalign.config import STRICT
from specalign.ranges import Batch, Count, CountOrZero, Gamma, NotNegative, Share, ShareBelow1

Metric = Literal["alpha", "agreement", "tau", "probe_tau"]


@dataclass(frozen=True)
class OptimiserConfig:
    """AdamW with warm-up and cosine decay."""

    lr: NotNegative = 0.0
    """Peak learning rate; 0: by the kind of start (RATES)."""
    warmup_steps: CountOrZero = 50
    """Steps in which the rate rises to its peak; 0: none."""
    final_lr: Share = 0.1
    """Rate at the end, as a share of the peak."""
    weight_decay: NotNegative = 0.01
    """Decoupled weight decay of matrices; norms, biases and embeddings have none."""
    beta1: ShareBelow1 = 0.9
    """Decay of the gradient's mean."""
    beta2: ShareBelow1 = 0.95
    """Decay of the squared gradient's mean."""
    max_grad_norm: NotNegative = 1.0
    """Gradient norm above which gradients are scaled down; 0: never."""
    batch: Batch = 4
    """Prompts of one forward and backward pass, on each process."""
    accumulation: Batch = 1
    """Passes of one optimiser step; weighted by tokens, they equal one big batch."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third slower."""
    sharded: Literal["none", "moments", "weights"] = "none"
    """What the processes of a launcher divide among them: nothing; AdamW's moments (ZeRO stage 1); or the layers'
    weights, gradients and moments (torch's FSDP2: ZeRO stage 3), which are put together while the student writes."""
    compile: bool = False
    """Run the student's decoder through torch.compile where the loss is computed; the first step is slow."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Autocast of the student's forward pass; auto: bfloat16 on CUDA, else none. float16, for GPUs without bfloat16,
    scales the loss and leaves a step out where that overflows. Weights stay float32."""
    __pydantic_config__ = STRICT


@dataclass(frozen=True)
class BudgetConfig:
    """When training ends: at whichever limit comes first; 0 is no limit."""

    steps: CountOrZero = 200
    """Optimiser steps."""
    seconds: NotNegative = 0.0
    """Seconds of training, validation excluded."""
    tokens: CountOrZero = 0
    """Trained tokens."""
    __pydantic_config__ = STRICT


@dataclass(frozen=True)
class LoggingConfig:
    """What is written while training."""

    every: Count = 50
    """Steps between log lines."""
    validate_every: CountOrZero = 100
    """Steps between validations; 0: only before and after training."""
    probe_prompts: CountOrZero = 0
    """Validation prompts decoded speculatively at each validation; 0: none."""
    probe_gamma: Gamma = 4
    """Draft length of the probe, and of the expected tau."""
    checkpoint_every: CountOrZero = 100
    """Steps between checkpoints; 0: none."""
    keep_checkpoints: Count = 2
    """Checkpoints kept, the latest ones."""
    trackers: tuple[str, ...] = ()
    """Where the lines of train.jsonl go too: tensorboard, wandb, mlflow, ... (any tracker of accelerate's)."""
    __pydantic_config__ = STRICT


@dataclass(frozen=True)
class ResultConfig:
    """Which weights a run leaves."""

    keep: Literal["best", "last"] = "best"
    """best: those of the best validation, the start's included; last: those of the last step."""
    metric: Metric = "alpha"
    """Validation metric by which one is the best; probe_tau, of real decoding, needs logging.probe_prompts."""
    __pydantic_config__ = STRICT
