"""Small projections that steer a block: routers of experts, gates of one number, weights of parallel streams.

They decide where tokens go and how much of a result counts. They hold next to none of a block's weights, and a zero in
them costs far more than elsewhere, so they stay dense. What they are called differs from one model to the next
(``gate``, ``gate.wg``, ``router.layer``, ``shared_expert_gate``, ``altup.modality_router``); how they are wired does
not.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping

from torch import nn

ROUTER = "the router of a mixture of experts"
GATE = "a gate: a few numbers per token that weigh other results"
STREAMS = "coefficients that weigh parallel streams"

_FEW = 4
_NUMBER_OF_EXPERTS = re.compile(r"(^|_)(num|n|total)_(\w+_)?experts$")


def numbers_of_experts(*modules: nn.Module) -> set[int]:
    """Return what modules' own attributes, such as ``num_local_experts``, say of how many experts there are."""
    found = (value for m in modules for name, value in vars(m).items() if _NUMBER_OF_EXPERTS.search(name))
    return {value for value in found if isinstance(value, int) and value > 1}


def stacks(block: nn.Module) -> dict[str, list[str]]:
    """Return the modules of a block that hold a matrix per expert in one parameter, by name, with those parameters.

    Such a parameter has three dimensions, the first of which is a number of experts: one that a module of the block or
    the configuration of one states, or the outputs of a layer beside it that has fewer of them than inputs.
    """
    told = [*block.modules(), *(c for m in block.modules() if (c := vars(m).get("config")) is not None)]
    known = numbers_of_experts(*told)
    found: dict[str, list[str]] = {}
    for name, module in block.named_modules():
        mine = {part: p for part, p in module._parameters.items() if p is not None and p.dim() == 3}
        if mine and not type(module).__module__.startswith("torch.nn."):
            near = [*module.modules(), *block.get_submodule(name.rpartition(".")[0]).children()]
            counts = known | {shape[0] for m in near if (shape := _shape(m)) and 1 < shape[0] <= shape[1] // 2}
            parts = [part for part, p in mine.items() if p.shape[0] in counts and p.is_floating_point()]
            found |= {name: parts} if parts else {}
    return found


def inputs_first(fused: nn.Module, parts: list[str]) -> bool:
    """Tell whether experts are ``[in, out]``: their module says so, or gate and up projection lie side by side in them.

    Args:
        fused: the module.
        parts: its parameters that hold a matrix per expert.
    """
    said = getattr(fused, "is_transposed", None)
    if said is not None or len(parts) < 2:
        return bool(said)
    (_, rows, cols), (_, inner, outer) = (fused.get_parameter(part).shape for part in parts[:2])
    return rows == outer and cols == 2 * inner


def routers(model: nn.Module, told: bool = False) -> dict[str, str]:
    """Return what chooses among experts, by name; see `controls`.

    Args:
        model: any module.
        told: whether a list of like modules counts as experts only if a module says how many experts there are.
    """
    shapes = {name: found for name, module in model.named_modules() if name and (found := _shape(module))}
    mixtures = _mixtures(model, told)
    return {name: ROUTER for owner, own, counts in mixtures for name in _routers(owner, own, counts, shapes)}


def controls(block: nn.Module) -> dict[str, str]:
    """Return the modules of a block that steer it, by name, with what they are.

    A router is told by its number of outputs, which is that of the experts beside it, and by nothing behind it taking
    these outputs as its input; whatever leads to them within a module of its own belongs to it.

    Example:
        >>> experts = nn.ModuleList(nn.Linear(64, 64) for _ in range(8))
        >>> controls(nn.ModuleDict({"choose": nn.Linear(64, 8), "proj": nn.Linear(64, 64), "parts": experts}))
        {'choose': 'the router of a mixture of experts'}
    """
    shapes = {name: found for name, module in block.named_modules() if name and (found := _shape(module))}
    few = [name for name, (out, inputs) in shapes.items() if out == 1 or out <= min(_FEW, inputs // 16)]
    return dict.fromkeys(_streams(shapes), STREAMS) | dict.fromkeys(few, GATE) | routers(block)


def _shape(module: nn.Module) -> tuple[int, int] | None:
    """Return ``(out, in)`` of a module that maps a vector to a vector by a matrix of its own."""
    weight = module._parameters.get("weight")
    if isinstance(module, nn.Embedding) or weight is None or weight.dim() != 2:
        return None
    out, inputs = weight.shape
    return (inputs, out) if type(module).__name__ == "Conv1D" else (out, inputs)  # that of transformers


def _mixtures(block: nn.Module, told: bool) -> Iterator[tuple[str, str, set[int]]]:
    """Yield whatever holds experts: the name of the module around it, its own, and how many there may be."""
    stacked = stacks(block)
    for name, module in block.named_modules():
        owner = name.rpartition(".")[0]
        said = numbers_of_experts(module)
        listed = isinstance(module, nn.ModuleList | nn.ModuleDict) and len({type(m) for m in module.children()}) == 1
        if name in stacked:
            counts = {module.get_parameter(part).shape[0] for part in stacked[name]} | said
            inside = f"{name}." if name else ""  # the router may be a part of the module that holds the experts
            yield name, f"{inside}<experts>", counts | {count + 1 for count in counts}  # one more, which skips them all
        elif name and listed and len(alike := list(module.children())) > 1 and any(map(_shape, alike[0].modules())):
            if not told or len(alike) in numbers_of_experts(module, block.get_submodule(owner)):
                yield owner, name, {len(alike), len(alike) + 1, *said}
        elif said and not _shape(module) and any(p is not None and p.dim() == 2 for p in module._parameters.values()):
            yield owner, name, said  # all experts in one matrix


def _routers(owner: str, holder: str, counts: set[int], shapes: Mapping[str, tuple[int, int]]) -> list[str]:
    """Return the routers of one mixture: those in the nearest module around it that has any."""
    while True:
        prefix = f"{owner}." if owner else ""
        outside = [n for n in shapes if n.startswith(prefix) and n != holder and not n.startswith(f"{holder}.")]
        heads: dict[str, list[str]] = {}
        for name in outside:
            rest = name[len(prefix) :]
            heads.setdefault(rest.partition(".")[0] if "." in rest else "", []).append(name)
        found = [name for child, members in heads.items() for name in _steering(child, members, counts, shapes)]
        if found or not owner:
            return found
        owner = owner.rpartition(".")[0]


def _steering(child: str, members: list[str], counts: set[int], shapes: Mapping[str, tuple[int, int]]) -> list[str]:
    """Return which layers of one module choose among experts; ``child`` is empty for those directly in the mixture."""
    last, taken = list[str](), set[int]()
    for name in reversed(members):
        if shapes[name][0] not in taken:  # nothing behind it takes what it gives
            last.append(name)
        taken.add(shapes[name][1])
    choosing = [n for n in last if shapes[n][0] in counts]
    if not child:
        return choosing
    widths = {shapes[n][0] for n in last if n not in choosing}
    return members if choosing and not widths & {shapes[n][1] for n in choosing} else []


def _streams(shapes: Mapping[str, tuple[int, int]]) -> list[str]:
    """Return the layers of modules that take a vector and give back nothing but a few numbers."""
    if not shapes:
        return []
    width = Counter(inputs for _, inputs in shapes.values()).most_common(1)[0][0]
    inside: dict[str, list[str]] = {}
    for name in shapes:
        inside.setdefault(name.rpartition(".")[0], []).append(name)
    inside.pop("", None)
    few = {n for n, (out, inputs) in shapes.items() if min(out, inputs) <= max(_FEW, width // 128) and 2 * out <= width}
    return [n for members in inside.values() if len(members) > 1 and few.issuperset(members) for n in members]
