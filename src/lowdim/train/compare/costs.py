"""What a network of a run cost: arithmetic and memory counted over its densities, training and inference apart."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from lowdim.evaluate.cost.cost import Cost
from lowdim.train.compare.member import Member, drawn


def cost(member: Member) -> dict[str, Any]:
    """Return FLOPs and bytes as ``training.json`` holds them.

    ``sparse`` is what an executor that stores only kept weights holds; ``masked`` what a simulation holds.
    """
    updates = [] if member.sparsity is None else [u for u in member.sparsity.history if "kept" in u]
    schedule = [(0, member.initial), *((update["step"], update["kept"]) for update in updates)]
    wanted = member.sparsity is not None and member.sparsity.method.wants_gradient
    probe = Cost(state=2 if member.recipe.optimizer.name == "adamw" else int(member.recipe.optimizer.momentum > 0))
    net = member.settings.build(member.data, member.recipe.seed).eval()
    found = probe.measure(
        net,
        member.data.train.x[:1],
        schedule,
        member.steps,
        dense_gradients=[update["step"] - 1 for update in updates] if wanted else (),
        batch=member.recipe.batch,
    )
    trained = sum(drawn(member.recipe, member.data)) * member.recipe.objective.passes
    scanned = member.recipe.sampler.scans(member.recipe.epochs) * len(member.data.train.y)
    each = found.training_flops / (member.steps * member.recipe.batch)
    return {
        "training_flops": each * trained + found.inference_flops * scanned,
        "inference_flops": found.inference_flops,
        "training_bytes": _totals(found.training_memory),
        "inference_bytes": _totals(found.inference_memory),
        "uncounted": list(found.uncounted),
    }


def _totals(by_storage: Any) -> dict[str, dict[str, int]]:
    return {storage: {**asdict(held), "total": held.total} for storage, held in by_storage.items()}
