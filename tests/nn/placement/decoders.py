"""Tiny decoders of five families, and each computed again by hand, in fp64, with every placement from its equation.

Nothing here knows of rules, sites or blocks: the tensors are taken from the state dict by their names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import sqrt
from typing import Any

import torch
import transformers as t
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, silu, softmax

WIDTH, HEADS, KV, SIZE, MLP, BLOCKS, VOCAB = 32, 4, 2, 8, 48, 4, 64
_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "intermediate_size": MLP,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV,
    "head_dim": SIZE,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
TOKENS = torch.arange(12)[None] * 5 % VOCAB
FAMILIES = ("llama", "qwen3", "mistral", "gemma3", "gpt2")


def decoder(family: str, blocks: int = BLOCKS, seed: int = 0, **more: Any) -> Any:
    """Return an untrained decoder in evaluation mode."""
    torch.manual_seed(seed)
    sizes = {**_SIZES, "num_hidden_layers": blocks, **more}
    if family == "gpt2":
        sizes = {"vocab_size": VOCAB, "n_embd": WIDTH, "n_layer": blocks, "n_head": HEADS, "n_positions": 64}
        return t.GPT2LMHeadModel(t.GPT2Config(**sizes, bos_token_id=None, eos_token_id=None, **more)).eval()
    if family == "gemma3":
        kinds = ["sliding_attention", "full_attention"] * blocks
        sizes |= {"layer_types": kinds[:blocks], "sliding_window": 6}
        return t.Gemma3ForCausalLM(t.Gemma3TextConfig(**sizes)).eval()
    names = {"llama": "Llama", "qwen3": "Qwen3", "mistral": "Mistral"}
    config = getattr(t, f"{names[family]}Config")(**sizes)
    return getattr(t, f"{names[family]}ForCausalLM")(config).eval()


@torch.no_grad()
def stir(model: Any, seed: int = 1, size: float = 0.1) -> Any:
    """Move every parameter off the value that it begins with."""
    source = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.add_(size * torch.randn(parameter.shape, generator=source).to(parameter))
    return model


# ---------------------------------------------------------------- a decoder by hand

Named = Mapping[str, Tensor]


def by_hand(model: Any, family: str, step: Step) -> Tensor:
    """Return the logits of TOKENS, fp64, where ``step`` is the residual step of a placement."""
    w = {name.removeprefix("model.").removeprefix("transformer."): v.double() for name, v in model.state_dict().items()}
    c, old = model.config, family == "gpt2"
    x = w["wte.weight" if old else "embed_tokens.weight"][TOKENS]
    if old:
        x = x + w["wpe.weight"][: TOKENS.shape[1]]
    if family == "gemma3":
        x = x * float(torch.tensor(sqrt(WIDTH), dtype=torch.float32))
    for index in range(BLOCKS):
        part = f"h.{index}." if old else f"layers.{index}."
        block = {name.removeprefix(part): v for name, v in w.items() if name.startswith(part)}
        norm = _norm(family, block, c)
        for at, branch in enumerate((_attention(family, block, c, index), _mlp(family, block))):
            x = step(x, branch, Names(family, at, norm, block), index + 1)
    x = _norm(family, w, c)("ln_f" if old else "norm")(x)
    head = w["lm_head.weight"]
    return x @ head.T


class Names:
    """The norms of one branch, and what its block has besides."""

    def __init__(self, family: str, at: int, norm: Callable[[str], Any], block: Named) -> None:
        self.at, self.block = at, block
        own = {
            "gpt2": (("ln_1", "attn_norm"), ("ln_2", "mlp_norm")),
            "gemma3": (
                ("input_layernorm", "post_attention_layernorm"),
                ("pre_feedforward_layernorm", "post_feedforward_layernorm"),
            ),
        }.get(family, (("input_layernorm", "self_attn_norm"), ("post_attention_layernorm", "mlp_norm")))
        before, after = own[at]
        self.before = norm(before)
        self.after = norm(after)
        self.final = norm(after if family == "gemma3" else before)

    def gate(self, x: Tensor) -> Tensor:
        gates = self.block["gpas.gate"]
        return x - float(silu(gates[min(self.at, len(gates) - 1)].float())) * x


Step = Callable[[Tensor, Callable[[Tensor], Tensor], Names, int], Tensor]


def _norm(family: str, w: Named, c: Any) -> Callable[[str], Callable[[Tensor], Tensor]]:
    def named(name: str) -> Callable[[Tensor], Tensor]:
        def norm(x: Tensor) -> Tensor:
            if family == "gpt2":
                return layer_norm(x, (WIDTH,), w[f"{name}.weight"], w[f"{name}.bias"], c.layer_norm_epsilon)
            return _rms(x, w[f"{name}.weight"], c.rms_norm_eps, family)

        return norm

    return named


def _rms(x: Tensor, weight: Tensor, eps: float, family: str) -> Tensor:
    gain = weight + 1 if family == "gemma3" else weight
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * gain


def _attention(family: str, w: Named, c: Any, index: int) -> Callable[[Tensor], Tensor]:
    def branch(x: Tensor) -> Tensor:
        length = x.shape[1]
        if family == "gpt2":
            made = x @ w["attn.c_attn.weight"] + w["attn.c_attn.bias"]
            q, k, v = (_heads(part, HEADS) for part in made.split(WIDTH, -1))
        else:
            sizes = zip("qkv", (HEADS, KV, KV), strict=True)
            q, k, v = (_heads(x @ w[f"self_attn.{name}_proj.weight"].T, heads) for name, heads in sizes)
            if family in ("qwen3", "gemma3"):
                q = _rms(q, w["self_attn.q_norm.weight"], c.rms_norm_eps, family)
                k = _rms(k, w["self_attn.k_norm.weight"], c.rms_norm_eps, family)
            kind = c.layer_types[index] if family == "gemma3" else None
            rope = c.rope_parameters[kind] if kind else c.rope_parameters
            q, k = (_turned(part, rope["rope_theta"]) for part in (q, k))
            k, v = (part.repeat_interleave(HEADS // KV, 1) for part in (k, v))
        scale = c.query_pre_attn_scalar**-0.5 if family == "gemma3" else SIZE**-0.5
        place = torch.arange(length)
        hidden = place[None] > place[:, None]
        if family == "gemma3" and c.layer_types[index] == "sliding_attention":
            hidden |= place[None] <= place[:, None] - c.sliding_window
        scores = (q @ k.transpose(-1, -2) * scale).masked_fill(hidden, -torch.inf)
        mixed = (softmax(scores, -1) @ v).transpose(1, 2).flatten(2)
        if family == "gpt2":
            return mixed @ w["attn.c_proj.weight"] + w["attn.c_proj.bias"]
        return mixed @ w["self_attn.o_proj.weight"].T

    return branch


def _heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, SIZE)).transpose(1, 2)


def _turned(x: Tensor, theta: float) -> Tensor:
    angles = torch.arange(x.shape[-2]).double()[:, None] * theta ** -(torch.arange(0, SIZE, 2).double() / SIZE)
    one, two = x.chunk(2, -1)
    return torch.cat((one * angles.cos() - two * angles.sin(), two * angles.cos() + one * angles.sin()), -1)


def _mlp(family: str, w: Named) -> Callable[[Tensor], Tensor]:
    def branch(x: Tensor) -> Tensor:
        if family == "gpt2":
            inner = gelu(x @ w["mlp.c_fc.weight"] + w["mlp.c_fc.bias"], approximate="tanh")
            return inner @ w["mlp.c_proj.weight"] + w["mlp.c_proj.bias"]
        gate = x @ w["mlp.gate_proj.weight"].T
        act = gelu(gate, approximate="tanh") if family == "gemma3" else silu(gate)
        return (act * (x @ w["mlp.up_proj.weight"].T)) @ w["mlp.down_proj.weight"].T

    return branch


# ---------------------------------------------------------------- the equations, block l = 1 .. L


def pre(x: Tensor, f: Any, n: Names, block: int) -> Tensor:
    return x + f(n.before(x))


def post(x: Tensor, f: Any, n: Names, block: int) -> Tensor:
    return n.final(x + f(x))


def sandwich(x: Tensor, f: Any, n: Names, block: int) -> Tensor:
    return x + n.after(f(n.before(x)))


def deepnorm(x: Tensor, f: Any, n: Names, block: int) -> Tensor:
    return n.final((2 * BLOCKS) ** 0.25 * x + f(x))


def mix(x: Tensor, f: Any, n: Names, block: int) -> Tensor:
    return (post if block <= 2 else pre)(x, f, n, block)


def lns(x: Tensor, f: Any, n: Names, block: int) -> Tensor:
    return x + f(n.before(x) / sqrt(block))


def gpas_pre(x: Tensor, f: Any, n: Names, block: int) -> Tensor:
    return n.gate(x + f(n.before(x)))


def gpas_lns(x: Tensor, f: Any, n: Names, block: int) -> Tensor:
    return n.gate(x + f(n.before(x) / sqrt(block)))


def gpas_sandwich(x: Tensor, f: Any, n: Names, block: int) -> Tensor:
    return n.gate(x + n.after(f(n.before(x))))


def gpas_post(x: Tensor, f: Any, n: Names, block: int) -> Tensor:
    return n.final(n.gate(x) + f(x))


def gpas_deepnorm(x: Tensor, f: Any, n: Names, block: int) -> Tensor:
    return n.final((2 * BLOCKS) ** 0.25 * n.gate(x) + f(x))


def gpas_mix(x: Tensor, f: Any, n: Names, block: int) -> Tensor:
    return (gpas_post if block <= 2 else gpas_pre)(x, f, n, block)


def prores(share: Callable[[int], float], below: str) -> Step:
    """Return ProRes over Pre-LN, Post-LN, Sandwich, DeepNorm or LNS."""

    def step(x: Tensor, f: Any, n: Names, block: int) -> Tensor:
        a = share(block)
        if below == "post":
            return n.final(x + a * f(x))
        if below == "deepnorm":
            return n.final((2 * BLOCKS) ** 0.25 * x + a * f(x))
        if below == "sandwich":
            return x + a * n.after(f(n.before(x)))
        return x + a * f(n.before(x) / (sqrt(block) if below == "lns" else 1.0))

    return step
