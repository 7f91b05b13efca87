"""EAGLE-3 heads: the layer that vLLM computes, cached and uncached alike, in files that vLLM finds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache

from specalign.errors import UserError
from specalign.models.eagle import EagleConfig, EagleHead, is_head, load_head
from specalign.models.eagle_start import default_layers, head_config, new_head
from specalign.models.heads import head_of, hidden_states
from specalign.models.states import states_entering
from specalign.models.tiny import make_model

IDS = torch.tensor([1, 2, 5, 7, 11, 30])
READS = (0, 1, 3)


def tiny_head(family: str = "llama", *, trimmed: bool = True, **changes: Any) -> EagleHead:
    target = make_model(family)
    config = head_config(target.config, READS, len(IDS) if trimmed else 40, verifier="tiny", n_draft=3)
    for name, value in changes.items():
        setattr(config, name, value)
    head = new_head(target, config, IDS if trimmed else None, seed=1)
    with torch.no_grad():
        for name, parameter in head.named_parameters():  # gains other than 1
            if "norm" in name:
                parameter.mul_(1 + 0.1 * torch.arange(len(parameter)) / len(parameter))
            elif "embed" not in name and "lm_head" not in name:
                parameter.mul_(8.0)
    return head


def entries(n: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, 40, (2, n), generator=generator)
    states = torch.randn(2, n, 3 * 32, generator=generator, dtype=torch.float64)
    return ids, states, torch.arange(n).expand(2, -1)


def rms(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * gain


def by_hand(head: EagleHead, ids: Tensor, states: Tensor) -> Tensor:
    """Eagle3LlamaForCausalLM of vLLM, written with the names of its weights, one query at a time."""
    w: dict[str, Tensor] = {k: v.detach() for k, v in head.state_dict().items()}
    fields = head.config.layer
    eps, d, group = fields.rms_norm_eps, 8, 2
    layer = "layers.0."
    hidden = states @ w["fc.weight"].T
    embeds = rms(w["embed_tokens.weight"][ids], w[f"{layer}input_layernorm.weight"], eps)
    normed = rms(hidden, w[f"{layer}hidden_norm.weight"], eps)
    residual = normed if head.config.norm_before_residual else hidden
    both = torch.cat([embeds, normed], -1)
    q, k, v = (
        (both @ w[f"{layer}self_attn.{name}_proj.weight"].T).unflatten(-1, (-1, d)).transpose(1, 2)
        for name in "qkv"
    )
    angle = torch.arange(ids.shape[1])[:, None] / 10_000.0 ** (torch.arange(0, d, 2) / d)
    turn = torch.polar(torch.ones_like(angle), angle).to(torch.complex128)

    def rotated(x: Tensor) -> Tensor:
        turned = torch.complex(x[..., : d // 2], x[..., d // 2 :]) * turn
        return torch.cat([turned.real, turned.imag], -1)

    q, k = rotated(q), rotated(k).repeat_interleave(group, 1)
    v = v.repeat_interleave(group, 1)
    rows = []
    for t in range(ids.shape[1]):
        weights = torch.einsum("bhd,bhsd->bhs", q[:, :, t], k[:, :, : t + 1]).div(d**0.5).softmax(-1)
        rows.append(torch.einsum("bhs,bhsd->bhd", weights, v[:, :, : t + 1]).flatten(1))
    x = residual + torch.stack(rows, 1) @ w[f"{layer}self_attn.o_proj.weight"].T
    inner = rms(x, w[f"{layer}post_attention_layernorm.weight"], eps)
    gate, up = (inner @ w[f"{layer}mlp.{name}_proj.weight"].T for name in ("gate", "up"))
    return x + (functional.silu(gate) * up) @ w[f"{layer}mlp.down_proj.weight"].T


@pytest.mark.parametrize("norm_before_residual", [False, True])
def test_the_layer_is_that_of_vllm(norm_before_residual: bool) -> None:
    head = tiny_head(norm_before_residual=norm_before_residual)
    ids, states, positions = entries()
    ours = head(ids, head.project(states), position_ids=positions, attention_mask=None)
    torch.testing.assert_close(ours, by_hand(head, ids, states), rtol=1e-5, atol=1e-5)
    other = tiny_head(norm_before_residual=not norm_before_residual)
    assert (
        other(ids, head.project(states), position_ids=positions, attention_mask=None) - ours
    ).abs().max() > 0.1


def test_a_cached_step_is_the_uncached_one() -> None:
    head = tiny_head()
    ids, states, positions = entries()
    hidden = head.project(states)
    causal = torch.ones(6, 6, dtype=torch.bool).tril()[None, None].expand(2, -1, -1, -1)
    whole = head(ids, hidden, position_ids=positions, attention_mask=causal)
    cache = DynamicCache()
    parts = [
        head(
            ids[:, a:b],
            hidden[:, a:b],
            position_ids=positions[:, a:b],
            attention_mask=causal[:, :, a:b, :b],
            past_key_values=cache,
        )
        for a, b in ((0, 3), (3, 4), (4, 6))
    ]
    torch.testing.assert_close(torch.cat(parts, 1), whole)


def test_the_mask_decides_what_an_entry_sees() -> None:
    head = tiny_head()
    ids, states, positions = entries()
    mask = torch.ones(6, 6, dtype=torch.bool).tril()[None, None].expand(2, -1, -1, -1).clone()
    changed = states.clone()
    changed[:, 2] += 1
    mask[:, :, 4, 2] = False

    def at(states: Tensor) -> Tensor:
        return head(ids, head.project(states), position_ids=positions, attention_mask=mask)

    difference = (at(changed) - at(states)).abs().amax((0, 2))
    assert difference[4] == 0
    assert (difference[[2, 3, 5]] > 1e-3).all()


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "gemma3"])
def test_a_head_starts_with_the_targets_embedding_norm_and_rows(family: str) -> None:
    target = make_model(family)
    head = new_head(target, head_config(target.config, READS, len(IDS)), IDS)
    ids = entries()[0]
    with states_entering(target, (3,)) as caught:
        final = hidden_states(target, input_ids=ids)
    torch.testing.assert_close(head.head_input(caught[3]), final, rtol=1e-4, atol=1e-4)
    theirs, own = head_of(target, IDS), head_of(head)
    assert own.ids is not None
    assert own.ids.tolist() == IDS.tolist()
    torch.testing.assert_close(theirs.cap(own(final)), theirs(final))
    torch.testing.assert_close(head.embed_tokens.weight, target.get_input_embeddings().weight)
    assert not head.embed_tokens.weight.requires_grad


def test_rows_of_a_trimmed_head_are_found_by_id() -> None:
    head, hidden = tiny_head(), torch.randn(3, 32, dtype=torch.float64)
    some = head_of(head, torch.tensor([5, 30]))
    assert some.ids is not None
    assert some.ids.tolist() == [5, 30]
    torch.testing.assert_close(some(hidden), head_of(head)(hidden)[:, [2, 5]])


@pytest.mark.parametrize("trimmed", [True, False])
def test_a_folder_is_named_as_vllm_reads_it_and_loads_again(trimmed: bool, tmp_path: Path) -> None:
    head = tiny_head(trimmed=trimmed).float()
    head.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    # vLLM 0.32: HFConfigParser.parse, SpeculatorsConfig, update_eagle3, LlamaModel
    assert config["model_type"] == "speculators"
    assert config["speculators_model_type"] == "eagle3"
    assert config["speculators_config"]["proposal_methods"][0]["speculative_tokens"] == 3
    assert config["speculators_config"]["verifier"]["name_or_path"] == "tiny"
    assert config["draft_vocab_size"] == (6 if trimmed else 40)
    assert config["target_hidden_size"] == 32
    assert config["norm_before_residual"] is False
    assert config["eagle_aux_hidden_state_layer_ids"] == list(READS)
    layer = config["transformer_layer_config"]
    assert (layer["model_type"], layer["num_hidden_layers"], layer["vocab_size"]) == ("llama", 1, 40)
    weights = load_file(tmp_path / "model.safetensors")
    attention = {f"layers.0.self_attn.{name}_proj.weight" for name in "qkvo"}
    mlp = {f"layers.0.mlp.{name}_proj.weight" for name in ("gate", "up", "down")}
    norms = {f"layers.0.{n}.weight" for n in ("input_layernorm", "hidden_norm", "post_attention_layernorm")}
    others = {"embed_tokens.weight", "fc.weight", "norm.weight", "lm_head.weight"} | (
        {"d2t"} if trimmed else set()
    )
    assert set(weights) == attention | mlp | norms | others
    assert weights["layers.0.self_attn.q_proj.weight"].shape == (32, 64)
    assert weights["fc.weight"].shape == (32, 96)
    if trimmed:
        assert weights["d2t"].dtype == torch.int64
        assert (weights["d2t"] + torch.arange(6)).tolist() == IDS.tolist()
    again = load_head(str(tmp_path))
    assert is_head(str(tmp_path))
    assert not again.training
    assert again.config.reads == READS
    ids, states, positions = entries()
    one, two = (
        model(ids, model.project(states.float()), position_ids=positions, attention_mask=None)
        for model in (head, again)
    )
    assert torch.equal(one, two)
    assert torch.equal(again.draft_ids, head.draft_ids)


def test_a_head_of_others_loads_with_its_t2d_and_without_our_model_type(tmp_path: Path) -> None:
    head = tiny_head().float()
    head.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file(
        weights | {"t2d": torch.zeros(40, dtype=torch.bool)}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    config = json.loads((tmp_path / "config.json").read_text())
    del config["model_type"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert is_head(str(tmp_path))
    assert torch.equal(load_head(str(tmp_path)).draft_ids, head.draft_ids)


def test_what_is_no_readable_head_is_said(tmp_path: Path) -> None:
    head = tiny_head().float()
    head.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    for change, message in (
        ({"fc_norm": True}, "fc_norm, which is not supported"),
        ({"eagle_aux_hidden_state_layer_ids": None}, "names no eagle_aux_hidden_state_layer_ids"),
        ({"eagle_aux_hidden_state_layer_ids": [0, 3]}, "of another shape: fc.weight"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(written | change))
        with pytest.raises(UserError, match=message):
            load_head(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(written | {"speculators_model_type": "dflash"}))
    assert not is_head(str(tmp_path))
    (tmp_path / "config.json").write_text("[")
    assert not is_head(str(tmp_path))


@pytest.mark.parametrize("layers", [(0, 1), (1, 0, 2), (0, 0, 1), (-1, 1, 2), (0, 1, 4)])
def test_layers_that_a_target_lacks_are_refused(layers: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="3 layers that rise from 0 to 3"):
        head_config(make_model("llama").config, layers, 40)


def test_an_encoder_decoder_target_is_refused() -> None:
    with pytest.raises(UserError, match="this one is an encoder-decoder"):
        head_config(make_model("t5").config, (0, 1, 2), 40)


@pytest.mark.parametrize(
    ("n_layers", "layers"), [(30, (2, 15, 30)), (3, (1, 2, 3)), (2, (0, 1, 2)), (24, (2, 12, 24))]
)
def test_default_layers(n_layers: int, layers: tuple[int, ...]) -> None:
    assert default_layers(n_layers) == layers


def test_the_same_seed_draws_the_same_head() -> None:
    target = make_model("llama")
    config = head_config(target.config, READS, 40)
    before = torch.get_rng_state()
    one, two, other = (new_head(target, config, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.fc.weight, two.fc.weight)
    assert not torch.equal(one.fc.weight, other.fc.weight)
    assert isinstance(EagleConfig(**config.to_dict()), EagleConfig)
