"""NPB: masks without data, with many paths through many nodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from lowdim.core.allocation.shapes import resolve
from lowdim.core.errors import RecipeError, suggest
from lowdim.train.initial.base import Initialisation, Start, shapes_of

if TYPE_CHECKING:
    from torch import Tensor, nn

Solver = Literal["greedy", "milp"]


@dataclass(frozen=True)
class NPB(Initialisation):
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
        max_kernel: most weights in one kernel, unless the layer's count needs more; the first layer has no limit.
        allocation: how the budget is spread over the layers, as for `RandomMasks`.
        solver: "greedy", or "milp" for the integer programme of the paper, by SciPy's HiGHS.
        chunk: output channels per integer programme; larger layers are split, as the authors do.

    Paper: "Towards Data-Agnostic Pruning At Initialization: What Makes a Good Sparse Mask?", NeurIPS 2023.
    """

    needs: ClassVar[str] = "example"

    alpha: float = 0.01
    beta: float = 1.0
    max_kernel: int = 9
    allocation: Any = "erk"
    solver: Solver = "greedy"
    chunk: int = 32

    def __post_init__(self) -> None:
        if not 0.0 <= self.alpha <= 1.0:
            raise RecipeError(f"alpha must be between 0 and 1; got {self.alpha}")
        if not self.beta >= 0.0:
            raise RecipeError(f"beta must not be negative; got {self.beta}")
        for name, value in (("max_kernel", self.max_kernel), ("chunk", self.chunk)):
            if not isinstance(value, int) or value < 1:
                raise RecipeError(f"{name} must be a whole number of at least 1; got {value}")
        if self.solver not in get_args(Solver):
            raise RecipeError(
                f"unknown solver {self.solver!r}. {suggest(str(self.solver), get_args(Solver))}"
            )

    def choose(self, start: Start, sparsity: float) -> dict[str, Tensor]:
        """Return the masks."""
        from lowdim.train.initial.paths import balanced

        counts = resolve(self.allocation, shapes_of(start.weights), sparsity)
        return balanced(self, start, counts)


def npb(
    model: nn.Module,
    example: Any,
    *,
    sparsity: float,
    alpha: float = 0.01,
    beta: float = 1.0,
    max_kernel: int = 9,
    allocation: Any = "erk",
    solver: Solver = "greedy",
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Choose masks by effective nodes and paths; see `NPB`, and `Initialisation.masks` for the arguments.

    ``example`` is an input, one sample being enough, or the shape of one, (1, 3, 32, 32).

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> {name: int(mask.sum()) for name, mask in npb(net, (1, 4), sparsity=0.75).items()}
        {'0.weight': 8}
    """
    method = NPB(alpha, beta, max_kernel, allocation, solver)
    return method.masks(model, example, sparsity=sparsity, include=include, exclude=exclude, seed=seed)
