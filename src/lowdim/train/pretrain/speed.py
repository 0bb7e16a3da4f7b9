"""How much arithmetic a token costs, how much this machine can do at best, and what share of that a run gets."""

from __future__ import annotations

import time

import torch
from transformers import PreTrainedModel

from lowdim.runs.clock import peak_memory


def flops_per_token(model: PreTrainedModel, length: int) -> float:
    """Return the FLOPs of training on a token: forward, and twice that backward; recomputed activations do not count.

    6 N + 12 L T d, as in arXiv 2204.02311, appendix B: N weights of matrices, the head's among them and the embedding's
    not, L blocks, d their width; the second term are the products of queries, keys and values, without what a causal
    kernel spares.

    Args:
        model: whose sizes count; layers that are factors count as these.
        length: T, tokens of a sequence.
    """
    table, head = (part and part.weight for part in (model.get_input_embeddings(), model.get_output_embeddings()))
    matrices = sum(p.numel() for p in model.parameters() if p.dim() > 1 and (p is not table or table is head))
    inner = model.config.get_text_config(decoder=True)
    return 6.0 * matrices + 12.0 * int(inner.num_hidden_layers) * length * int(inner.hidden_size)


def memory(device: torch.device) -> int:
    """Return the bytes that were held at most until now: of a GPU by this process, else by the process."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory()


def matmul_peak(dtype: torch.dtype, device: torch.device) -> float:
    """Return the FLOPs a second of the fastest of some products of two large square matrices, on all threads."""
    size = 8192 if device.type == "cuda" else 768  # short enough to find a moment that no other work disturbs
    one, other = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(2))
    one @ other  # what the first one sets up
    best, ends = float("inf"), time.perf_counter() + 0.25  # where a dtype is emulated, one takes longer
    while best == float("inf") or time.perf_counter() < ends:
        begun = time.perf_counter()
        one @ other
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - begun)
    return 2 * size**3 / best
