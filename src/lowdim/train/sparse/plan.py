"""From arguments to layers: what `SparseTraining` does before the first step."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lowdim.core.allocation import ERK, Allocation, counts_for
from lowdim.core.errors import LowdimError, RecipeError, suggest
from lowdim.core.masks import as_mask
from lowdim.core.pattern import Pattern, Unstructured
from lowdim.core.pattern.units import Turned, Units
from lowdim.core.random import generator
from lowdim.core.recipe.which import choose
from lowdim.core.topk import keep_top_rows
from lowdim.core.transition import draw
from lowdim.models.structure.selection import Weight, ends, inventory, named_weights, plain_name, shares_memory, weights
from lowdim.models.structure.zeros import refuse_packed
from lowdim.nn.csr.linear import CSRLinear
from lowdim.nn.int8 import Int8Weight
from lowdim.train.initial.base import warn_of_empty
from lowdim.train.sparse.csr import CSRLayer
from lowdim.train.sparse.distributed import local
from lowdim.train.sparse.layer import Held
from lowdim.train.sparse.masked import MaskedLayer
from lowdim.train.sparse.measured import layers_in, weights_alone
from lowdim.train.sparse.method import Method
from lowdim.train.sparse.parts import Part, part_of
from lowdim.train.sparse.state import check_free, per_weight, rehearse


@dataclass(frozen=True)
class Request:
    """The arguments of `SparseTraining` that say what becomes sparse."""

    model: nn.Module
    optimizer: Optimizer
    method: Method
    sparsity: float | None
    allocation: Allocation
    include: Sequence[str] | None
    exclude: Sequence[str] | None
    pattern: Pattern
    masks: Mapping[str, Tensor] | None
    seed: int


@dataclass(frozen=True)
class LayerPlan:
    """The layers, the units each keeps at the end, and every weight, with its reason where it stays dense."""

    layers: tuple[Held, ...]
    targets: dict[str, int]
    weights: tuple[Weight, ...]


def check_method(method: Any, total_steps: int | None) -> None:
    """Refuse anything that is not a method, and a method that lacks the length of the run.

    Raises:
        RecipeError: see above.
    """
    if not isinstance(method, Method):
        hint = f"; write {method.__name__}()" if isinstance(method, type) else ""
        raise RecipeError(f"method must be one of lowdim.train, such as RigL(every=100); got {method!r}{hint}")
    if total_steps is not None and (not isinstance(total_steps, int) or total_steps < 1):
        raise RecipeError(f"total_steps must be a whole number of at least 1; got {total_steps!r}")
    method.check_length(total_steps)


def build(request: Request) -> LayerPlan:
    """Choose the layers, spread the budget, draw or take the masks.

    Raises:
        RecipeError: an argument is out of range, or names nothing.
        LowdimError: the optimizer lacks a weight, or two weights share memory.
    """
    refuse_packed(request.model)
    if truly := truly_sparse(request):
        return truly
    if request.masks is not None:
        _check_allocation(request, "masks says")
        request = replace(request, masks=_canonical(request.masks, request.model))
    found = _chosen(request)
    chosen = [w for w in found if not w.dense]
    _target(request)
    _check_optimizer(request, chosen)
    _check_memory(request.model, chosen)
    check_free(chosen)
    if request.masks is not None:
        request = replace(request, masks=_by_matrix(request.masks, chosen))
    sparse = [matrix for w in chosen for matrix in _matrices(w)]
    units = {w.name: units_of(request.pattern, w) for w in sparse}
    grouped = any(u.groups > 1 for u in units.values())
    if grouped and request.method.changes_density:
        raise RecipeError(
            f"{type(request.method).__name__} changes how much is kept, which pattern {request.pattern} does not "
            "allow; use RigL, SET, ITOP or Static with it"
        )
    first, targets = _counts(request, sparse, units)
    layers: list[Held] = []
    for weight in sparse:
        name, u = weight.name, units[weight.name]
        quota = request.pattern.quota(u, first[name])
        kept = _initial(request, name, u, quota, first[name])
        layers.append(MaskedLayer(weight, u, quota, kept, request.optimizer))
        if quota is not None:
            targets[name] = layers[-1].kept
    _warn_of_dense(found, sum(w.parameter.numel() for w in chosen))
    return LayerPlan(tuple(layers), targets, tuple(found))


def _check_allocation(request: Request, who: str) -> None:
    """Refuse an allocation beside masks that would change nothing.

    Raises:
        RecipeError: see above.
    """
    if request.allocation == ERK():
        return
    why, remedy = request.method.overrules(), "Leave allocation out"
    if not why and request.sparsity is None:
        why, remedy = "has no other numbers to go to without a sparsity", "Give sparsity, or leave allocation out"
    if why:
        raise RecipeError(
            f"{who} how many weights each layer keeps, and so does allocation {request.allocation}; "
            f"{type(request.method).__name__} {why}. {remedy}"
        )


# ---------------------------------------------------------------- which layers

_ASKED = ("excluded", "not included", "no mask given", "frozen")


def _warn_of_dense(found: Sequence[Weight], sparse: int) -> None:
    """Warn where what stays dense, though nobody asked for it, outweighs what becomes sparse."""
    left = [w for w in found if w.dense and w.dense not in _ASKED]
    numel = sum(w.parameter.numel() for w in left)
    if numel > sparse:
        largest = max(left, key=lambda w: w.parameter.numel())
        warnings.warn(
            f"{numel} of {numel + sparse} weights stay dense, more than become sparse, so the sparsity of the model "
            f"will be far below that of its sparse layers. The largest is {largest.name} ({largest.dense}); "
            "print(training) lists them all",
            stacklevel=4,
        )


def _chosen(request: Request) -> list[Weight]:
    if request.masks is None:
        classifier = request.allocation.takes_classifier
        return weights(request.model, request.include, request.exclude, classifier=classifier)
    _check_named(request.masks, inventory(request.model))
    include, bare = (
        (request.include, ("",)) if request.include is not None else (list(request.masks), ("", "not included"))
    )
    found = weights(request.model, include, request.exclude)
    _check_named(request.masks, found)
    return [w if w.name in request.masks or w.dense not in bare else replace(w, dense="no mask given") for w in found]


def _check_named(masks: Mapping[str, Tensor], weights: Iterable[Weight]) -> None:
    """Refuse masks of what is frozen, or cannot be sparse."""
    known = {w.name: w.parameter for w in weights if not w.dense}
    for name in masks:
        if name not in known:
            raise RecipeError(f"masks names {name!r}, which cannot be sparse here. {suggest(name, known)}")
        if not known[name].requires_grad:
            raise RecipeError(
                f"masks names {name!r}, which is frozen (requires_grad is False): its zeros stay by themselves. "
                "Leave it out, or unfreeze it"
            )


def _by_matrix(masks: Mapping[str, Tensor], chosen: Sequence[Weight]) -> dict[str, Tensor]:
    """Return the masks by the names of what becomes sparse by itself: those of every expert apart."""
    return {matrix.name: part_of(masks[w.name], matrix.parameter) for w in chosen for matrix in _matrices(w)}


def _matrices(weight: Weight) -> list[Weight]:
    """Return what becomes sparse by itself: every expert's matrix, else the weight.

    Raises:
        LowdimError: experts are sharded.
    """
    if not weight.stacked:
        return [weight]
    if hasattr(weight.parameter, "device_mesh"):
        raise LowdimError(
            f"{weight.name} holds the matrices of all experts and is sharded over ranks, so that no rank has an "
            "expert's own. Train with DistributedDataParallel, or leave the experts dense: exclude"
        )
    parts = (Part(weight.parameter, place) for place in range(len(weight.parameter)))
    return [replace(weight, name=f"{weight.name}[{part.place}]", parameter=part) for part in parts]


def _canonical(masks: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return the masks by the first name of their parameter; tied parameters have several."""
    every = named_weights(model)
    first = {id(p): plain_name(n, model) for n, p in model.named_parameters()}
    made: dict[str, Tensor] = {}
    for given, mask in masks.items():
        key = given if given in every else f"{given}.weight"
        if key not in every:
            raise RecipeError(f"masks names {given!r}, which the model lacks. {suggest(given, every)}")
        name = first[id(every[key])]
        if name in made:
            raise RecipeError(f"masks gives two masks to one tied weight: {name} and {key}. Give it one")
        mask = as_mask(given, mask)
        if tuple(mask.shape) != tuple(every[key].shape):
            raise RecipeError(
                f"the mask of {given} has shape {tuple(mask.shape)}, the weight has {tuple(every[key].shape)}"
            )
        made[name] = mask
    if not made:
        raise RecipeError("masks names no weight; give one mask at least, or leave masks out to draw them")
    warn_of_empty("masks=...", made)
    return made


def _check_memory(model: nn.Module, sparse: list[Weight]) -> None:
    tensors = {plain_name(n, model): local(p.detach()) for n, p in model.named_parameters()}
    tensors = {name: tensor for name, tensor in tensors.items() if not isinstance(tensor, Int8Weight)}  # of three
    mine = {w.name for w in sparse}
    for a, b in shares_memory(tensors):
        if a in mine or b in mine:
            raise LowdimError(
                f"{a} and {b} are two parameters in the same memory, so one mask would act on both. Tie them by "
                "assigning one Parameter to both modules, or exclude them"
            )


def units_of(pattern: Pattern, weight: Weight) -> Units:
    """Cut a weight into units, whichever axis its inputs are; see `lowdim.core.pattern.base.Pattern.units`."""
    shape = tuple(weight.parameter.shape)
    if pattern == Unstructured() or not weight.inputs_first:
        return pattern.units(weight.name, shape)
    parts: int = getattr(weight.module, "groups", 1)
    turned = pattern.units(weight.name, (parts * shape[1], shape[0] // parts, *shape[2:]))
    return Turned(shape, turned.size, turned.groups, inner=turned, parts=parts)


def _check_optimizer(request: Request, sparse: list[Weight]) -> None:
    optimizer, moves = request.optimizer, request.method.moves
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for weight in sparse:
        if id(weight.parameter) not in held:
            raise LowdimError(
                f"the optimizer does not hold {weight.name}. Give it model.parameters(), made after the model has its "
                "final parameters, or leave the layer out (exclude, masks)"
            )
        if isinstance(local(weight.parameter), Int8Weight):
            raise LowdimError(
                f"{weight.name} is kept in 8 bits, of which no zero stays one for certain. Train it with an optimizer "
                "that keeps floats, such as galore or adamw, or leave the layer out (exclude, masks)"
            )
        if moves:  # a weight that never comes back inherits nothing
            per_weight(optimizer, weight.parameter, weight.name)
    rehearse(optimizer, sparse[0].parameter.device, moves)


def truly_sparse(request: Request) -> LayerPlan | None:
    """Return the plan of a model with truly sparse layers, which bring their masks; None if it has none.

    Raises:
        RecipeError: masks, a pattern or an allocation that changes nothing are given, or a sparsity that the method
            cannot bring about.
        LowdimError: the optimizer lacks the values of a layer.
    """
    modules = {n: m for n, m in request.model.named_modules() if isinstance(m, CSRLinear)}
    if not modules:
        return None
    if request.masks is not None or request.pattern != Unstructured():
        raise RecipeError("CSRLinear layers bring their own masks, without a pattern; leave out masks and pattern")
    _check_allocation(request, "the CSRLinear layers say")
    named = {plain_name(f"{n}.weight" if n else "weight", request.model): m for n, m in modules.items()}
    chosen = choose(named, request.include, request.exclude)
    found = [Weight(n, m, "values", m.values, "" if n in chosen else "not chosen") for n, m in named.items()]
    sparse = [w for w in found if not w.dense]
    found += [w if w.dense else replace(w, dense="held dense") for w in inventory(request.model)]
    _check_optimizer(request, sparse)
    check_free(sparse)
    layers = tuple(CSRLayer(w.name, named[w.name], request.optimizer) for w in sparse)
    targets = {layer.name: layer.kept for layer in layers}
    if request.sparsity is not None:
        shapes = {layer.name: layer.shape for layer in layers}
        wanted = counts_for(shapes, request.allocation, request.sparsity, ends(request.model))
        if not request.method.changes_density and sum(wanted.values()) != sum(targets.values()):
            raise RecipeError(
                f"the CSRLinear layers keep {sum(targets.values())} weights; {type(request.method).__name__} leaves "
                f"it at that; sparsity {request.sparsity:g} would be {sum(wanted.values())}. Leave sparsity out"
            )
        targets = wanted
    return LayerPlan(layers, targets, tuple(found))


# ---------------------------------------------------------------- how much, and where


def _counts(request: Request, sparse: list[Weight], units: dict[str, Units]) -> tuple[dict[str, int], dict[str, int]]:
    """Return the units each layer keeps at the start and at the end."""
    if request.masks is not None:
        first = {name: round(int(request.masks[name].sum()) / u.weights) for name, u in units.items()}
        if request.sparsity is None:
            return first, dict(first)
        last = _spread(request, sparse, units, request.sparsity)
        request.method.check_budget(units, sum(first.values()), sum(last.values()))
        return first, last
    sparsity = _target(request)
    start = request.method.initial(sparsity) if sparsity is not None else None
    if sparsity is not None:
        request.method.check_spread(request.allocation, sparsity)
    targets = _spread(request, sparse, units, sparsity)
    if start == sparsity:
        return dict(targets), targets
    first = _spread(request, sparse, units, start)
    return {name: max(first[name], targets[name]) for name in units}, targets


def _target(request: Request) -> float | None:
    pattern = request.pattern
    return pattern.check_recipe(request.sparsity) if pattern.groups_of else request.sparsity


def _spread(request: Request, sparse: list[Weight], units: dict[str, Units], sparsity: float | None) -> dict[str, int]:
    layers = layers_in(request.model, {name: u.shape for name, u in units.items()})
    scan = weights_alone(request.allocation, layers, {w.name: w for w in sparse})
    counts = request.allocation.counts(layers, sparsity, scan)
    return {name: min(u.size, max(1, round(counts[name] / u.weights))) for name, u in units.items()}


def _initial(request: Request, name: str, units: Units, quota: Tensor | None, count: int) -> Tensor:
    """Return the units that are active at first, bool [size]."""
    if request.masks is not None:
        mask = request.masks[name]
        kept = units.values(mask.float()) > 0
        if not torch.equal(units.spread(kept), mask.to(kept.device)):
            raise RecipeError(f"the mask of {name} does not fit the pattern {request.pattern}")
        if quota is not None and not torch.equal(kept.reshape(units.groups, -1).sum(1).cpu(), quota):
            raise RecipeError(f"the mask of {name} does not keep the same number in every group of {request.pattern}")
        return kept
    source = generator(request.seed, "mask", name)
    if quota is None:
        kept = torch.zeros(units.size, dtype=torch.bool)
        kept[draw(count, units.size, torch.empty(0, dtype=torch.int64), source)] = True
        return kept
    scores = torch.rand(units.groups, units.size // units.groups, generator=source)
    return keep_top_rows(scores, quota).flatten()
