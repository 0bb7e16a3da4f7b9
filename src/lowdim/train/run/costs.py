"""What a network of a run cost: arithmetic and memory counted over its densities, training and inference apart."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from lowdim.core.recipe import families
from lowdim.evaluate.cost import Cost
from lowdim.train.run.member import Member, steps_per_epoch

_NO_DENSE_GRADIENT = ("static", "set", "gradual-magnitude", "ctre")
"""Methods that never look at the gradient of weights that are off; any other is taken to do so at every update."""


def grows_by_gradient(method: Any) -> bool:
    """Return whether a method wants the dense gradient when masks move.

    Example:
        >>> from lowdim.train.dynamic.itop import ITOP
        >>> grows_by_gradient(ITOP()), grows_by_gradient(ITOP(grow="gradient"))
        (False, True)
    """
    if hasattr(method, "grow"):
        return bool(method.grow == "gradient")
    return families.name_of("training", method) not in _NO_DENSE_GRADIENT


def cost(member: Member) -> dict[str, Any]:
    """Return FLOPs and bytes as ``training.json`` holds them.

    ``sparse`` is what an executor holds that stores kept weights alone; ``masked`` what a simulation does.
    """
    updates = [] if member.sparsity is None else [u for u in member.sparsity.history if "kept" in u]
    schedule = [(0, member.initial), *((update["step"], update["kept"]) for update in updates)]
    wanted = member.sparsity is not None and grows_by_gradient(member.sparsity.method)
    probe = Cost(
        state=2 if member.recipe.optimizer.name == "adamw" else int(member.recipe.optimizer.momentum > 0)
    )
    net = member.settings.build(member.data, member.recipe.seed).eval()
    found = probe.measure(
        net,
        member.data.train.x[:1],
        schedule,
        member.steps,
        dense_gradients=[update["step"] - 1 for update in updates] if wanted else (),
        batch=member.recipe.batch,
    )
    examples = len(member.data.train.y) / (steps_per_epoch(member.recipe, member.data) * member.recipe.batch)
    return {
        "training_flops": found.training_flops * examples,
        "inference_flops": found.inference_flops,
        "training_bytes": _totals(found.training_memory),
        "inference_bytes": _totals(found.inference_memory),
        "uncounted": list(found.uncounted),
    }


def _totals(by_storage: Any) -> dict[str, dict[str, int]]:
    return {storage: {**asdict(held), "total": held.total} for storage, held in by_storage.items()}
