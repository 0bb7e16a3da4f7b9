"""What the numbers mean, said plainly, above all where sparsity does not pay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lowdim.infer.bench.result import LayerTime, ModelSpeed

PAYS = 1.05
"""A gain that a user would notice."""
SMALL = 300e6  # bytes of weights per token below which the rest of a step counts


def notes(
    subject: Mapping[str, Any], layers: Sequence[LayerTime], models: Sequence[ModelSpeed], level: str
) -> list[str]:
    """Return the sentences that belong under a table of results."""
    found = [*_conditions(subject), *_without_kernels(level), *_backends(models), *_forms(models)]
    found += _pay_off(layers) + _models(models) + _prefill(models) + _small(models)
    return found


def _conditions(subject: Mapping[str, Any]) -> list[str]:
    found = []
    if subject.get("random_weights"):
        found.append(f"{subject['name']}: the weights are random numbers; speed does not depend on their values.")
    if subject.get("random_zeros"):
        found.append("The zeros were drawn at random: they say how fast such a model would be, not how good.")
    distinct, blocks = subject["distinct_blocks"], subject["blocks"]
    if distinct < blocks:
        found.append(
            f"{blocks} blocks cycle through {distinct} distinct ones in memory: more than the caches hold, so that "
            "every step reads its weights from memory as a whole model would."
        )
    return found


def _without_kernels(level: str) -> list[str]:
    if level != "torch":
        return []
    return ["There are no compiled kernels here: sparse products run in plain torch and are slower than dense ones."]


def _backends(models: Sequence[ModelSpeed]) -> list[str]:
    reasons = dict.fromkeys(m.reason for m in models if m.engine == "lowdim" and m.backend != "native")
    return [
        f"Hugging Face drives the steps, over sparse layers: {reason or 'there is no native engine here'}."
        for reason in reasons
    ]


def _forms(models: Sequence[ModelSpeed]) -> list[str]:
    return [f"What {m.dtype} {m.sparsity:.0%} lies in, and why: {'; '.join(m.forms)}." for m in models if m.forms]


def _pay_off(layers: Sequence[LayerTime]) -> list[str]:
    """Say for each dtype from which measured sparsity on a layer gains over the dense kernel."""
    found = []
    for dtype in dict.fromkeys(row.dtype for row in layers if row.engine == "lowdim"):
        curve = largest_curve([row for row in layers if row.dtype == dtype])
        gains = [r.sparsity for r in curve if (r.over_dense or 0) >= PAYS and not r.kernel.startswith("dense")]
        losses = [row.sparsity for row in curve if row.sparsity not in gains]
        if not curve:
            continue
        if not gains:
            found.append(
                f"{dtype}: at none of the measured sparsities are the sparse kernels faster than the dense one."
            )
        elif losses and max(losses) < min(gains):
            found.append(f"{dtype}: sparsity pays from about {min(gains):.0%} zeros; at {max(losses):.0%} it does not.")
    return found


def largest_curve(layers: Sequence[LayerTime]) -> list[LayerTime]:
    """Return the sparse rows of the shape that was measured at most sparsities, sparsest last."""
    shapes: dict[tuple[int, int], list[LayerTime]] = {}
    for row in layers:
        if row.engine == "lowdim" and row.sparsity:
            shapes.setdefault((row.rows, row.cols), []).append(row)
    longest = max(shapes.values(), key=len, default=[])
    return sorted(longest, key=lambda row: row.sparsity)


def _models(models: Sequence[ModelSpeed]) -> list[str]:
    idle = [m for m in models if m.engine == "lowdim" and m.sparsity and (m.over_dense or PAYS) < PAYS]
    if not idle:
        return []
    forms = ", ".join(f"{m.dtype} {m.sparsity:.0%} (x{m.over_dense:.2f})" for m in idle)
    return [f"Sparsity does not pay here, over the dense model in this runtime: {forms}."]


def _prefill(models: Sequence[ModelSpeed]) -> list[str]:
    sparse = [m for m in models if m.engine == "lowdim" and m.sparsity]
    ratios = [m.prefill_over_torch for m in sparse if m.prefill_over_torch is not None]
    if not ratios:
        return []
    torch = "torch bf16" if all(m.prefill_tokens_per_s is not None for m in models) else "torch fp32"
    return [
        f"Prefill of {sparse[0].prompt} tokens runs at up to {max(ratios):.2f} times {torch}: "
        "many tokens at a time are computed with dense products on unpacked weights, where zeros save nothing."
    ]


def _small(models: Sequence[ModelSpeed]) -> list[str]:
    torch = next((m for m in models if m.engine == "torch"), None)
    if torch is None or torch.bytes_per_token >= SMALL:
        return []
    return [
        "This is a small model: most of the gain over torch is the runtime's and the dtype's. Sparsity itself shows "
        "from about a billion weights up."
    ]
