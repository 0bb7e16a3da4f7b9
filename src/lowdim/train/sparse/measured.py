"""What an allocation looks at in a network before training: its weights, and the inputs of its layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lowdim.core.allocation import Allocation, AllocationResult, LayerInfo, Scan, ScannedLayer
from lowdim.core.allocation.base import by_block
from lowdim.core.allocation.by_shape import end_of
from lowdim.core.errors import RecipeError
from lowdim.core.statistics import InputStatistics
from lowdim.models.structure.selection import Weight, ends, plain_name, weights
from lowdim.nn.blocks import evaluating
from lowdim.train.initial.base import Start
from lowdim.train.initial.gradients import batches_of, outputs_of, untouched


@dataclass(frozen=True, eq=False)
class Measured(Allocation):
    """An allocation, and the layers that it looks at, as they were when they were measured; made by `measured`."""

    inner: Allocation
    blocks: tuple[tuple[ScannedLayer, ...], ...]

    @property
    def takes_classifier(self) -> bool:  # type: ignore[override]
        """Whether the one measured does."""
        return self.inner.takes_classifier

    def allocate(self, layers: Sequence[LayerInfo], sparsity: float, scan: Scan) -> AllocationResult:
        """Return the sparsities.

        Raises:
            RecipeError: the sparse layers are not those that were measured.
        """
        seen = {layer.info.name for block in self.blocks for layer in block}
        if other := seen ^ {info.name for info in layers}:
            raise RecipeError(
                f"the allocation was measured on other layers than are sparse ({min(other)} is one of the "
                "differences). Give measured the same include and exclude"
            )
        return self.inner.allocate(layers, sparsity, lambda: iter([list(block) for block in self.blocks]))


def measured(
    allocation: Allocation,
    model: nn.Module,
    data: Any,
    *,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
) -> Measured:
    """Measure on data what an allocation looks at, for ``SparseTraining(allocation=...)``.

    The inputs of every layer are seen in evaluation mode, and their root mean square is the scale of its weights'
    columns, as in Wanda. The network comes back unchanged.

    Args:
        allocation: such as ``OWL()``.
        model: the network as it is before masks act, not sharded; the layers that become sparse are linear.
        data: batches (inputs, targets), one or several; see `lowdim.train.initial.gradients.batches_of`.
        include: globs of the weights that become sparse, as for `SparseTraining`.
        exclude: globs of weights that stay dense.

    Raises:
        RecipeError: a layer is not linear, or no batch reached it.

    Example:
        >>> from lowdim.core.allocation import OWL
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> allocation = measured(OWL(m=2), net, (torch.randn(6, 4), torch.zeros(6)))
        >>> [layer.info.name for block in allocation.blocks for layer in block]
        ['0.weight', '2.weight']
    """
    takes = allocation.takes_classifier
    chosen = {w.name: w for w in weights(model, include, exclude, classifier=takes) if not w.dense}
    layers = layers_in(model, {name: tuple(w.parameter.shape) for name, w in chosen.items()})
    start = Start(model, {name: w.parameter for name, w in chosen.items()}, data, None, 0)
    with _listening(chosen) as statistics, untouched(model, 0), evaluating(model), torch.no_grad():
        for inputs, _ in batches_of(start):
            outputs_of(model, inputs)
    for name, seen in statistics.items():
        if not seen.tokens:
            raise RecipeError(f"no input reached {name}, so its allocation cannot be measured; exclude it")
        seen.check(name)
    scales = {name: seen.mean_square().sqrt() for name, seen in statistics.items()}
    return Measured(allocation, tuple(tuple(block) for block in scan_of(layers, chosen, scales)()))


def scan_of(
    layers: Sequence[LayerInfo], chosen: Mapping[str, Weight], scales: Mapping[str, Tensor] | None = None
) -> Scan:
    """Return what reads the weights of a network, block by block, with the scales of their columns, if known.

    Raises:
        RecipeError: when it is called: a weight is sharded over ranks.
    """

    def scan() -> Iterator[list[ScannedLayer]]:
        for members in by_block(layers).values():
            yield [ScannedLayer(info, _matrix(chosen[info.name]), (scales or {}).get(info.name)) for info in members]

    return scan


def weights_alone(allocation: Allocation, layers: Sequence[LayerInfo], chosen: Mapping[str, Weight]) -> Scan:
    """Return what reads the weights for an allocation that needs nothing else.

    Raises:
        RecipeError: it needs the inputs of the layers too.
    """
    if allocation.scale_from == "wanda":
        raise RecipeError(
            f"allocation {allocation} looks at the inputs of every layer, which SparseTraining does not see. Measure "
            f"it on data first: allocation=lowdim.train.sparse.measured.measured({allocation}, model, batches)"
        )
    return scan_of(layers, chosen)


def layers_in(model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> list[LayerInfo]:
    """Return named weights as layers; the block of each is its item of the outermost ``nn.ModuleList``, else itself.

    Example:
        >>> net = nn.Module()
        >>> net.layers = nn.ModuleList([nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), nn.Linear(2, 2)])
        >>> names = ["layers.0.0.weight", "layers.0.1.weight", "layers.1.weight"]
        >>> [layer.block for layer in layers_in(net, dict.fromkeys(names, (2, 2)))]
        [0, 0, 1]
    """
    lists = [plain_name(f"{name}.", model) for name, m in model.named_modules() if isinstance(m, nn.ModuleList)]
    numbers: dict[str, int] = {}
    layers, known = [], ends(model)
    for name, shape in shapes.items():
        outer = min((each for each in lists if name.startswith(each)), key=len, default="")
        home = outer + name[len(outer) :].split(".")[0] if outer else name
        layers.append(LayerInfo(name, numbers.setdefault(home, len(numbers)), shape, end_of(name, known)))
    return layers


def _matrix(weight: Weight) -> Tensor:
    """Return a weight as fp32 [out, the rest]."""
    if hasattr(weight.parameter, "device_mesh"):
        raise RecipeError(
            f"{weight.name} is sharded over ranks, and the allocation reads whole weights. Measure it before "
            "fully_shard with lowdim.train.sparse.measured.measured, or use one that needs shapes alone, such as erk"
        )
    held = weight.parameter.detach()
    return (held.transpose(0, 1) if weight.inputs_first else held).float().flatten(1)


@contextmanager
def _listening(chosen: Mapping[str, Weight]) -> Iterator[dict[str, InputStatistics]]:
    """Take the statistics of the inputs of linear layers while the network runs."""
    found: dict[str, InputStatistics] = {}
    with ExitStack() as handles:
        for name, weight in chosen.items():
            if not isinstance(weight.module, nn.Linear) and type(weight.module).__name__ != "Conv1D":
                raise RecipeError(
                    f"{name} is of {type(weight.module).__name__}; inputs are measured at linear layers. Name those "
                    "with include=[...], or use an allocation without data, such as alpha"
                )
            matrix = _matrix(weight)
            found[name] = InputStatistics(matrix.shape[1], {"square"}, matrix.device)

            def listen(module: nn.Module, args: tuple[Any, ...], seen: InputStatistics = found[name]) -> None:
                seen.add(args[0].reshape(-1, args[0].shape[-1]))

            handles.callback(weight.module.register_forward_pre_hook(listen).remove)
        yield found
