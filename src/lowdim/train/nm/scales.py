"""How large the inputs of layers are, measured once before training."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from lowdim.core.errors import LowdimError
from lowdim.core.score import Wanda
from lowdim.core.statistics import InputStatistics
from lowdim.models import ranks
from lowdim.nn.blocks import evaluating


@torch.no_grad()
def column_scales(
    model: nn.Module,
    names: Iterable[str],
    batches: Iterable[Any],
    run: Callable[[nn.Module, Any], Any],
    transposed: Collection[str] = (),
) -> dict[str, Tensor]:
    """Return the root mean square of each input of linear layers, as `AST` with ``score`` "wanda" needs them.

    The model runs in evaluation mode; on several ranks each has its own batches, and all get the same scales. Tokens
    of padding count like others: give none.

    Args:
        model: that holds the layers.
        names: of their weights.
        batches: what ``run`` takes.
        run: (model, batch) -> anything.
        transposed: names of weights that are [in, out].

    Returns:
        fp32 [in] by name.

    Raises:
        LowdimError: no input reached a layer, or a name is no weight of a layer.
        NumericalError: inputs hold NaN or Inf.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 1))
        >>> column_scales(model, ["0.weight"], [torch.tensor([[3.0, 1.0], [3.0, -1.0]])], lambda model, x: model(x))
        {'0.weight': tensor([3., 1.])}
    """
    known, found = dict(model.named_parameters()), dict[str, InputStatistics]()
    with ExitStack() as listening, evaluating(model):
        for name in names:
            weight = known.get(name)
            if weight is None or weight.dim() != 2 or not name.endswith(".weight"):
                raise LowdimError(f"{name!r} is not the weight of a linear layer of the model, so it has no inputs")
            width = weight.shape[0 if name in transposed else 1]
            found[name] = InputStatistics(width, Wanda.needs, weight.device)
            layer = model.get_submodule(name.removesuffix(".weight"))
            listening.callback(layer.register_forward_pre_hook(_listener(found[name])).remove)
        for batch in batches:
            run(model, batch)
    for name, seen in found.items():
        ranks.add_up(seen.tensors())
        if not seen.tokens:
            raise LowdimError(f"no input reached {name}; leave it out, or give batches that use it")
        seen.check(name)
    return {name: Wanda().column_scale(seen) for name, seen in found.items()}


def _listener(seen: InputStatistics) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def listen(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        seen.add(inputs[0].reshape(-1, inputs[0].shape[-1]))

    return listen
