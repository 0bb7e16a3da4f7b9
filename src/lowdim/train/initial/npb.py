"""NPB: masks without data, with many paths through many nodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lowdim.core.budget import apportion
from lowdim.core.lazy import torch
from lowdim.core.random import derive_seed, generator
from lowdim.core.settings import count, share, within
from lowdim.train.initial.base import Allocated, Start

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn

Solver = Literal["greedy", "milp"]


@dataclass(frozen=True)
class NPB(Allocated):
    """Balances effective nodes and effective paths, layer by layer, knowing the weights' places alone.

    With every weight 1, P_i is the number of paths that arrive at input i of a layer of C_in inputs and C_out outputs,
    under the masks of the layers before. A layer that keeps n weights puts X_oi of them, at most the size of a kernel,
    between input i and output o, so that

        alpha * (inputs and outputs with a weight) / (C_in + C_out) + (1 - alpha) * sum X_oi P_i / most
        + beta * (kernels with a weight) / n

    is largest, ``most`` being the largest that sum can be. Where in a kernel its weights lie is drawn. Then weights
    that lie on no path from input to output are moved, within their layer, to where most paths pass.

    Norms and activation modules count as if they passed their input on, and biases as 0. Weights that are not of linear
    or convolutional modules get P_i = 1.

    Args:
        alpha: share of nodes against paths, from 0 to 1.
        beta: weight of the spread over many kernels.
        max_kernel: most weights in one kernel, after the repair too, unless the layer's count needs more; the first
            layer has no limit.
        allocation: how the budget is spread over the layers, as for `RandomMasks`.
        solver: "greedy", or "milp" for the integer programme of the paper, by SciPy's HiGHS.
        chunk: output channels that are solved at once; larger layers are split, as the authors do. None is 32 for
            "milp", and all of them for "greedy", which needs no splitting.

    Paper: "Towards Data-Agnostic Pruning At Initialization: What Makes a Good Sparse Mask?", NeurIPS 2023.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> {name: int(mask.sum()) for name, mask in NPB().masks(net, (1, 4), sparsity=0.75).items()}
        {'0.weight': 8}
    """

    needs: ClassVar[str] = "example"

    alpha: float = share(0.01)
    beta: float = within(1.0, least=0)
    max_kernel: int = count(9)
    allocation: Any = "erk"
    solver: Solver = "greedy"
    chunk: int | None = count(None)

    def choose(self, start: Start, sparsity: float) -> dict[str, Tensor]:
        """Return the masks."""
        return balanced(self, start, start.counts(self.allocation, sparsity))


def balanced(method: NPB, start: Start, counts: Mapping[str, int]) -> dict[str, Tensor]:
    """Place weights in one forward pass, each layer under the masks of those before; then repair."""
    from lowdim.train.initial import paths

    flow = paths.ones_flow(start.model, start.weights, start.data)
    masks: dict[str, Tensor] = {}
    owners = {
        id(module.weight): module
        for module in flow.net.modules()
        if isinstance(module, (torch.nn.Linear, *paths.CONVOLUTIONS, *paths.TRANSPOSED)) or _is_conv1d(module)
    }
    handles, limits = [], dict.fromkeys(flow.weights, 0)
    for name, weight in flow.weights.items():
        place = _Placing(method, start.seed, name, counts[name], weight, masks, limits)
        if id(weight) in owners:
            handles.append(owners[id(weight)].register_forward_pre_hook(place))
        else:
            place(torch.nn.Module(), ())
    with torch.no_grad():
        flow.total()
    for handle in handles:
        handle.remove()
    for name, weight in flow.weights.items():  # a layer that the forward pass never reached
        if name not in masks:
            _Placing(method, start.seed, name, counts[name], weight, masks, limits)(owners[id(weight)], ())
    linear = {name: limits[name] for name, weight in flow.weights.items() if id(weight) in owners}
    repaired = paths.repair(flow, masks, linear, start.seed)
    return {name: repaired[name].to(start.weights[name].device) for name in start.weights}


class _Placing:
    """A hook that masks its module's weight the moment its input is known."""

    def __init__(
        self,
        method: NPB,
        seed: int,
        name: str,
        count: int,
        weight: Tensor,
        masks: dict[str, Tensor],
        limits: dict[str, int],
    ) -> None:
        self.method, self.seed, self.name, self.count = method, seed, name, count
        self.weight, self.masks, self.limits = weight, masks, limits

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        from lowdim.train.initial import paths

        if self.name in self.masks:  # a module called twice
            return
        transposed = isinstance(module, paths.TRANSPOSED) or _is_conv1d(module)
        weight = self.weight.transpose(0, 1) if transposed else self.weight
        kernels = weight.reshape(*weight.shape[:2], -1)
        groups = getattr(module, "groups", 1) if not transposed else 1
        arriving = paths.arriving(module, args) if args else torch.ones(kernels.shape[1] * groups)
        method = self.method
        outs, ins, size = kernels.shape
        limit = max(size if not self.masks else min(method.max_kernel, size), -(-self.count // max(1, outs * ins)))
        self.limits[self.name] = limit
        mask = _place(method, kernels.shape, arriving.cpu(), groups, limit, self.count, self.seed, self.name)
        mask = mask.reshape(weight.shape).to(self.weight.device)
        self.masks[self.name] = (mask.transpose(0, 1) if transposed else mask).contiguous()
        with torch.no_grad():
            self.weight.mul_(self.masks[self.name])


def _place(
    method: NPB,
    shape: torch.Size,
    arriving: Tensor,
    groups: int,
    limit: int,
    count: int,
    seed: int,
    name: str,
) -> Tensor:
    """Return a mask [out, in, kernel] with ``count`` weights; each group of channels is treated as a layer."""
    import numpy as np

    from lowdim.train.initial import solvers

    outs, ins, size = shape
    drawn = generator(seed, "npb", name)
    numbers = np.random.default_rng(derive_seed(seed, "npb", name))
    parts = outs // groups
    shares = apportion([1.0] * groups, count, [parts * ins * size] * groups)
    made = []
    for part, kept in zip(arriving.reshape(groups, ins).double().numpy(), shares, strict=True):
        problem = solvers.Problem(part, parts, limit, kept, method.alpha, method.beta)
        made.append(torch.from_numpy(solvers.solve(problem, method.solver, method.chunk, numbers)))
    return _inside(torch.cat(made), size, drawn)


def _inside(kernels: Tensor, size: int, drawn: Generator) -> Tensor:
    """Draw where in its kernel each weight lies: counts [out, in] to a mask [out, in, kernel]."""
    if size == 1:
        return kernels.bool().unsqueeze(2)
    ranks = torch.rand(*kernels.shape, size, generator=drawn).argsort(2).argsort(2)
    return ranks < kernels.unsqueeze(2)


def _is_conv1d(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D"
