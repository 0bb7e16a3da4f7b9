"""What a sparse network costs in arithmetic: counts of multiplications and additions, not timings."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lowdim.core.errors import suggest
from lowdim.core.lazy import torch
from lowdim.evaluate.errors import EvaluationError

Schedule = Sequence[tuple[int, Mapping[str, int]]]


@dataclass(frozen=True)
class LayerCost:
    """One weight.

    Attributes:
        weights: its size.
        products: multiplications by its weights in one forward pass.
    """

    weights: int
    products: int

    def flops(self, kept: int | None = None) -> float:
        """Return a forward pass's FLOPs, an addition for each product, with ``kept`` weights or all of them."""
        share = 1.0 if kept is None else kept / self.weights
        return 2.0 * self.products * share


@dataclass(frozen=True)
class ModelCost:
    """A model on one input.

    Attributes:
        layers: weights of linear, convolutional, recurrent and attention layers, by parameter name.
        uncounted: other parameters that are multiplied by, without norms and biases: embeddings, gains, custom layers.
    """

    layers: dict[str, LayerCost]
    uncounted: tuple[str, ...]

    def flops(self, kept: Mapping[str, int] | None = None) -> float:
        """Return the FLOPs of a forward pass.

        Args:
            kept: number of kept weights by parameter name; layers that are not named are dense.

        Raises:
            EvaluationError: a name without a counted layer, or a count that its layer cannot have.
        """
        for name, count in (kept or {}).items():
            if name not in self.layers:
                raise EvaluationError(f"kept: no counted weight {name!r}. {suggest(name, self.layers)}")
            if not 0 <= count <= self.layers[name].weights:
                raise EvaluationError(f"kept: {name!r} has {self.layers[name].weights} weights; got {count}")
        return sum(layer.flops((kept or {}).get(name)) for name, layer in self.layers.items())


def count(model: torch.nn.Module, *inputs: Any, **named: Any) -> ModelCost:
    """Count the products of a forward pass by hooks on the layers.

    A weight of a linear layer is used once for every row of the input (token, example), of a convolution once for every
    place of the output (padding counts), of a transposed one for every place of the input, of a recurrent layer at
    every step. Biases, norms and activations are not counted, nor are products of two activations: the scores and the
    mixing of attention. The model runs in evaluation mode and is left as it was.

    Args:
        model: any dense module, masked or not; count before layers are exchanged for truly sparse ones.
        inputs: what the model is called with; the counts are for all of it, so give one example.
        named: keyword arguments of the call.

    Example:
        >>> import torch
        >>> cost = count(torch.nn.Linear(3, 2), torch.zeros(1, 3))
        >>> cost.flops(), cost.flops({"weight": 2})
        (12.0, 4.0)
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    products: dict[str, int] = {}

    def hook(module: torch.nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        for weight, uses in _uses(module, [*args, *kwargs.values()], output):
            name = names[id(weight)]
            products[name] = products.get(name, 0) + uses

    run_hooked(model, model.modules(), hook, inputs, named)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    return ModelCost(
        {name: LayerCost(sizes[name], products[name]) for name in sizes if name in products},
        tuple(name for name in sizes if name not in products and _multiplies(model, name)),
    )


def run_hooked(
    model: torch.nn.Module, modules: Iterable[torch.nn.Module], hook: Callable[..., None], inputs: Any, named: Any
) -> None:
    """Run a model once, in evaluation mode and without gradients, with a forward hook on some of its modules."""
    from lowdim.nn.blocks import evaluating

    handles = [module.register_forward_hook(hook, with_kwargs=True) for module in modules]
    try:
        with evaluating(model), torch.no_grad():
            model(*inputs, **named)
    finally:
        for handle in handles:
            handle.remove()


def _uses(module: Any, args: list[Any], output: Any) -> list[tuple[torch.Tensor, int]]:
    """Return the weights of one call of a module, each with its products."""
    if isinstance(module, torch.nn.Linear):
        return [(module.weight, module.weight.numel() * (args[0].numel() // module.in_features))]
    if isinstance(module, torch.nn.modules.conv._ConvNd):
        places = args[0].numel() // module.in_channels
        if not module.transposed:
            places = output.numel() // module.out_channels
        return [(module.weight, module.weight.numel() * places)]
    if isinstance(module, torch.nn.RNNBase | torch.nn.RNNCellBase):
        data = args[0].data if isinstance(args[0], torch.nn.utils.rnn.PackedSequence) else args[0]
        rows = data.numel() // module.input_size
        weights = [p for name, p in module.named_parameters() if name.startswith("weight")]
        return [(weight, weight.numel() * rows) for weight in weights]
    if isinstance(module, torch.nn.MultiheadAttention):
        queries, keys, values = (args[i].numel() // args[i].shape[-1] for i in range(3))
        rows = queries, keys, values
        if module.in_proj_weight is not None:
            found = [(module.in_proj_weight, module.embed_dim**2 * sum(rows))]
        else:
            three = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
            found = [(weight, weight.numel() * n) for weight, n in zip(three, rows, strict=True)]
        return [*found, (module.out_proj.weight, module.out_proj.weight.numel() * queries)]
    return []


def _multiplies(model: torch.nn.Module, name: str) -> bool:
    owner, _, last = name.rpartition(".")
    return "bias" not in last and "Norm" not in type(model.get_submodule(owner)).__name__


def training_flops(
    cost: ModelCost, schedule: Schedule, steps: int, *, dense_gradients: Collection[int] = (), batch: int = 1
) -> float:
    r"""Return the FLOPs of a training run.

    A step costs a forward pass, the gradient of the activations and that of the weights: 3 f_S with the
    FLOPs f_S of a sparse forward pass, or 2 f_S + f_D where the gradient of the weights is wanted densely.
    One dense gradient in every Delta T + 1 steps gives RigL's average,

    .. math:: \frac{3 f_S \Delta T + 2 f_S + f_D}{\Delta T + 1}

    Args:
        cost: of one example.
        schedule: (step, kept weights by name), the kept weights from that step on; the first step is 0. Of
            a training engine: ``[(0, kept at the start), *((entry["step"], entry["kept"]) for entry in
            training.history)]``.
        steps: how many steps the run has, numbered from 0.
        dense_gradients: steps whose weight gradient is dense.
        batch: examples a step.

    Raises:
        EvaluationError: a schedule that does not start at 0 or goes back, a dense gradient outside the
            run, unknown names.

    Example:
        >>> cost = ModelCost({"w": LayerCost(weights=100, products=100)}, ())
        >>> training_flops(cost, [(0, {"w": 10})], 101, dense_gradients=[100]) / 101
        61.78217821782178
    """
    starts = [step for step, _ in schedule]
    if not schedule or starts[0] != 0 or starts != sorted(starts):
        raise EvaluationError(f"a schedule starts at step 0 and does not go back; got steps {starts[:5]}")
    outside = [step for step in dense_gradients if not 0 <= step < steps]
    if outside:
        raise EvaluationError(f"dense_gradients: step {outside[0]} is not one of the {steps} steps of the run")
    full = cost.flops()
    total = 0.0
    for (start, kept), end in zip(schedule, [*starts[1:], steps], strict=True):
        start, end = min(start, steps), min(end, steps)
        sparse = cost.flops(kept)
        dense = sum(start <= step < end for step in dense_gradients)
        total += 3.0 * sparse * (end - start) + (full - sparse) * dense
    return total * batch
