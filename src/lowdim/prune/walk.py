"""Through the blocks: statistics, pruning, and the pruned block's outputs as inputs of the next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from lowdim.core.statistics import InputStatistics
from lowdim.models.structure.layers import Layer
from lowdim.models.walk.calls import Activation
from lowdim.models.walk.collect import Collector
from lowdim.models.walk.stream import Block
from lowdim.prune.bench import Outcome
from lowdim.prune.engine import Engine


@dataclass(frozen=True)
class Group:
    """Layers that share an input, and its statistics."""

    layers: list[Layer]
    statistics: InputStatistics
    remarks: Sequence[tuple[str, str]] = ()


def prune_block(engine: Engine, block: Block, activations: Sequence[Activation], config: object) -> list[Outcome]:
    """Prune one block in place; the activations stay those that enter it.

    Block-sequential, all statistics come from the dense block; true-sequential, each group of layers sees the inputs
    that the already pruned groups before it produce.
    """
    layers = [layer for layer in block.layers if layer.name in engine.budgets]
    if not layers:
        return []
    in_turn = engine.recipe.sequential == "true" and engine.needs
    walk = (_in_turn if in_turn else _together)(engine, block, activations, layers)
    masks = None
    if engine.recipe.pattern.joint and not engine.recipe.idle:
        walk = iter(groups := list(walk))
        masks = _joint_masks(engine, groups, config)
    outcomes: list[Outcome] = []
    for group in walk:
        for outcome in engine.prune(group.layers, group.statistics, masks):
            remarks = tuple(remark for name, remark in group.remarks if name == outcome.name)
            outcomes.append(replace(outcome, notes=outcome.notes + remarks))
    return outcomes


def _together(
    engine: Engine, block: Block, activations: Sequence[Activation], layers: Sequence[Layer]
) -> Iterator[Group]:
    """Yield the groups with statistics from one pass through the dense block."""
    if not engine.needs:
        for layer in layers:
            yield Group([layer], InputStatistics(layer.shape[1], ()))
        return
    collector = Collector(block, engine.needs, layers)
    collector.run(activations)
    yield from _groups(collector, layers)


def _in_turn(
    engine: Engine, block: Block, activations: Sequence[Activation], layers: Sequence[Layer]
) -> Iterator[Group]:
    """Yield the groups in the order of the forward, each with statistics taken after the ones before were pruned."""
    scout = Collector(block, (), layers)
    scout.run(activations[:1])
    by_name = {layer.name: layer for layer in layers}
    for names in scout.groups:
        collector = Collector(block, engine.needs, [by_name[name] for name in names])
        collector.run(activations)
        yield from _groups(collector, layers)


def _groups(collector: Collector, layers: Sequence[Layer]) -> Iterator[Group]:
    by_name = {layer.name: layer for layer in layers}
    for names in collector.groups:
        yield Group([by_name[name] for name in names], collector.statistics(names[0]), collector.notes)


def _joint_masks(engine: Engine, groups: Sequence[Group], config: object) -> Mapping[str, Tensor]:
    """Draw the masks of all layers of the block at once."""
    score = engine.recipe.score
    scores: dict[str, Tensor] = {}
    for group in groups:
        for layer in group.layers:
            evidence = engine.evidence(layer.name, group.statistics)
            scores[layer.name] = score.scores(layer.weight(), evidence)
    return engine.recipe.pattern.joint_masks(scores, config, {name: engine.budgets[name].keep for name in scores})
