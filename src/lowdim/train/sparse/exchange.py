"""The rules by which weights are dropped and grown, shared by all methods and both executors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from lowdim.core.lazy import torch
from lowdim.core.topk import keep_top_across
from lowdim.core.transition import complement, draw, drop_lowest, union

if TYPE_CHECKING:
    from torch import Tensor

    from lowdim.train.sparse.layer import SparseLayer
    from lowdim.train.sparse.moment import Moment

Candidates = Literal["any", "new", "live"]
Regrow = Literal["normal", "uniform", "zero"]


def replace(
    moment: Moment,
    layer: SparseLayer,
    count: int,
    drop: str,
    grow: str,
    candidates: Candidates = "any",
    regrow: Regrow = "zero",
    noise: float = 0.0,
) -> None:
    """Drop ``count`` units of a layer and grow as many.

    Args:
        moment: the update.
        layer: whose mask moves.
        count: units to drop; fewer if fewer than that could be grown.
        drop: "magnitude", the smallest |w|; "sign-count", as many of either sign; "taylor", the smallest (w g)^2.
        grow: "random"; "unfired", those never active first; "gradient", the largest |dense gradient|.
        candidates: "any" inactive unit, those just dropped included; "new" ones alone; or "live" ones, of outputs that
            keep a weight, as long as there are some.
        regrow: the value of grown weights: "zero", "normal" N(0, 0.1^2), or "uniform" in +-sqrt(6 / inputs).
        noise: standard deviation of what is added to |w| to break ties.
    """
    if candidates == "new":
        count = min(count, layer.size - layer.kept)
    if count:
        keep = kept(moment, layer, count, drop, noise)
        exchange(moment, layer, keep, grow, candidates, regrow)


def exchange(
    moment: Moment,
    layer: SparseLayer,
    keep: Tensor,
    grow: str,
    candidates: Candidates = "any",
    regrow: Regrow = "zero",
) -> None:
    """Drop what is not in ``keep`` (bool [kept]) and grow as many units by a rule; see ``replace``."""
    positions, count = layer.positions(), int((~keep).sum())
    excluded = positions if candidates == "new" else positions[keep]
    if candidates == "live":
        barred = union(excluded, _of_empty_outputs(layer, excluded))
        some = grown_by(moment, layer, min(count, layer.size - len(barred)), barred, grow)
        rest = grown_by(moment, layer, count - len(some), union(excluded, some), grow)
        grown = union(some, rest)
    else:
        grown = grown_by(moment, layer, count, excluded, grow)
    layer.move(keep, grown, initial_values(moment, layer, len(grown), regrow))


def _of_empty_outputs(layer: SparseLayer, staying: Tensor) -> Tensor:
    """Return all units of outputs (rows of blocks) that keep nothing, int64, ascending."""
    outputs = layer.shape[0] // layer.units.rows
    width = layer.size // outputs
    empty = complement((staying // width).unique(), outputs)
    return (empty[:, None] * width + torch.arange(width, device=empty.device)).flatten()


def kept(moment: Moment, layer: SparseLayer, count: int, drop: str, noise: float = 0.0) -> Tensor:
    """Mark the active units that stay when ``count`` go by a rule; bool [kept]."""
    if drop == "magnitude":
        return drop_lowest(magnitudes(moment, layer, noise), count)
    values = layer.values()
    if drop == "sign-count":
        return _equal_signs(values, count)
    return drop_lowest((values * layer.gradients()).square(), count)


def magnitudes(moment: Moment, layer: SparseLayer, noise: float) -> Tensor:
    """Return |w| of the active units, fp32 [kept], with noise that breaks ties."""
    sizes = layer.values().abs()
    if not noise:
        return sizes
    generator = moment.generator(layer, "ties")
    return sizes + noise * torch.randn(len(sizes), generator=generator).to(sizes)


def _equal_signs(values: Tensor, count: int) -> Tensor:
    """Drop half of ``count`` from either sign, those nearest to zero; if one sign runs out, the other gives more."""
    positive = values >= 0
    n_positive = int(positive.sum())
    n_negative = len(values) - n_positive
    from_positive = min(max(count - count // 2, count - n_negative), n_positive)
    keep = torch.ones_like(positive)
    for sign, part in ((positive, from_positive), (~positive, min(count - from_positive, n_negative))):
        keep[sign] = drop_lowest(values[sign].abs(), part)
    return keep


def grown_by(moment: Moment, layer: SparseLayer, count: int, excluded: Tensor, grow: str) -> Tensor:
    """Choose ``count`` units to grow, none of them ``excluded``; int64, ascending."""
    if grow == "gradient":
        return layer.top_gradient(count, excluded)
    generator = moment.generator(layer, "grow")
    if grow == "unfired":
        return _unfired(moment, layer, count, excluded, generator)
    return layer.draw(count, excluded, generator)


def _unfired(moment: Moment, layer: SparseLayer, count: int, excluded: Tensor, generator: torch.Generator) -> Tensor:
    known = moment.explored[layer.name].positions().to(excluded.device)
    barred = union(known, excluded)
    fresh = min(count, layer.size - len(barred))
    first = draw(fresh, layer.size, barred.cpu(), generator).to(excluded.device)
    rest = layer.draw(count - fresh, union(excluded, first), generator)
    return union(first, rest)


def initial_values(moment: Moment, layer: SparseLayer, count: int, regrow: Regrow) -> Tensor | None:
    """Return the weights of ``count`` grown units, fp32 [count]; None for zeros."""
    if regrow == "zero":
        return None
    generator = moment.generator(layer, "values")
    if regrow == "normal":
        return 0.1 * torch.randn(count, generator=generator)
    inputs = 1
    for size in layer.shape[1:]:
        inputs *= size
    bound: float = (6 / max(1, inputs)) ** 0.5
    return bound * (2 * torch.rand(count, generator=generator) - 1)


def shrink(layers: Sequence[SparseLayer], keep: int) -> None:
    """Keep the ``keep`` largest units of all layers together, by magnitude, exactly; all where there are fewer."""
    kept = min(keep, sum(layer.kept for layer in layers))
    stays = keep_top_across({layer.name: layer.values().abs() for layer in layers}, kept)
    for layer in layers:
        layer.move(stays[layer.name], layer.positions()[:0])
