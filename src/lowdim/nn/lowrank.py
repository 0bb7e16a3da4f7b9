"""Linear layers whose weight is the product of two thin matrices."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lowdim.core.errors import LowdimError
from lowdim.core.random import generator
from lowdim.nn.stock import refuse_to_save, refuses_to_save

NOT_STOCK = (
    "a model with factorised layers cannot be saved as a stock one. Write it with "
    "lowdim.models.save.save_factors, or make it dense first with lowdim.nn.lowrank.dense_"
)
"""Why it refuses ``save_pretrained``: factors would be loaded as random layers, unsaid."""


class LowRankLinear(nn.Module):
    """y = A (B x) + bias: A is [out, r], B [r, in], r (in + out) weights instead of in * out.

    It is smaller than the dense layer while r < in * out / (in + out), half the width of a square one.

    Args:
        in_features: inputs.
        out_features: outputs.
        rank: r, between 1 and the smaller of the two.
        bias: whether there is one.
        dtype: of all of it.
        device: of all of it.

    Raises:
        LowdimError: the rank is out of its range.

    Example:
        >>> layer = LowRankLinear(6, 4, rank=2)
        >>> layer(torch.ones(3, 6)).shape, sum(p.numel() for p in (layer.a, layer.b))
        (torch.Size([3, 4]), 20)
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        bias: bool = True,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if not 1 <= rank <= min(in_features, out_features):
            raise LowdimError(
                f"rank={rank} of a layer {out_features} x {in_features} must be between 1 and "
                f"{min(in_features, out_features)}"
            )
        how: Any = {"dtype": dtype, "device": device}
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.a = nn.Parameter(torch.zeros(out_features, rank, **how))
        self.b = nn.Parameter(torch.zeros(rank, in_features, **how))
        self.register_parameter("bias", nn.Parameter(torch.zeros(out_features, **how)) if bias else None)
        self.redraw_()

    @torch.no_grad()
    def redraw_(self, seed: int = 0, name: str = "") -> None:
        """Draw both factors so that A B has the variance of the weight of a fresh dense layer, 1 / (3 in).

        Args:
            seed: of the draws.
            name: of the layer, so that layers differ.
        """
        deviation = (1.0 / (3.0 * self.in_features * self.rank)) ** 0.25
        source = generator(seed, "low-rank", name)
        for factor in () if self.a.is_meta else (self.a, self.b):
            factor.copy_(torch.randn(factor.shape, generator=source) * deviation)

    @classmethod
    @torch.no_grad()
    def of(cls, layer: nn.Linear, rank: int) -> LowRankLinear:
        """Return the best approximation of a linear layer: A = U_r sqrt(S_r), B = sqrt(S_r) V_r^T of its weight.

        The error of the product is sqrt(sum of s_i^2 over i > r), in the Frobenius norm.
        """
        weight = layer.weight
        made = cls(layer.in_features, layer.out_features, rank, layer.bias is not None, weight.dtype, weight.device)
        for factor, found in zip((made.a, made.b), factors_of(weight, rank), strict=True):
            factor.copy_(found)
        if layer.bias is not None:
            made.bias = layer.bias
        return made

    @classmethod
    @torch.no_grad()
    def holding(cls, layer: nn.Linear, a: Tensor, b: Tensor) -> LowRankLinear:
        """Return what computes with given factors in the place of a layer: in its dtype and place, with its bias.

        Raises:
            LowdimError: they do not fit the layer.
        """
        out, width = layer.weight.shape
        if a.dim() != 2 or b.dim() != 2 or (len(a), b.shape[1]) != (out, width) or a.shape[1] != len(b):
            raise LowdimError(f"factors {list(a.shape)} and {list(b.shape)} do not fit a layer of {out} x {width}")
        made = cls(width, out, len(b), layer.bias is not None, torch.float32, "meta")
        made.a, made.b = (nn.Parameter(part.to(layer.weight.device, layer.weight.dtype)) for part in (a, b))
        made.bias = layer.bias
        return made.train(layer.training)

    def apart(self) -> nn.Sequential:
        """Return the same as two linear layers ``b`` and ``a``, one behind the other, which share the memory."""
        b = nn.Linear(self.in_features, self.rank, bias=False, device="meta")
        a = nn.Linear(self.rank, self.out_features, self.bias is not None, device="meta")
        b.weight, a.weight, a.bias = self.b, self.a, self.bias  # type: ignore[assignment]
        return nn.Sequential(OrderedDict(b=b, a=a)).train(self.training)

    @torch.no_grad()
    def dense(self) -> nn.Linear:
        """Return the dense layer that computes the same."""
        how: Any = {"dtype": self.a.dtype, "device": self.a.device}
        made = nn.Linear(self.in_features, self.out_features, self.bias is not None, **how)
        made.weight.copy_(self.a.float() @ self.b.float())
        if self.bias is not None:
            made.bias = self.bias
        return made

    def forward(self, input: Tensor) -> Tensor:
        """Return A (B x) + bias."""
        return nn.functional.linear(nn.functional.linear(input, self.b), self.a, self.bias)

    def extra_repr(self) -> str:
        """Say what it is."""
        return f"{self.in_features}, {self.out_features}, rank={self.rank}, bias={self.bias is not None}"


def factors_of(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return A [out, r] and B [r, in], fp32, whose product is the nearest matrix of a rank, the roots shared out.

    Example:
        >>> a, b = factors_of(torch.diag(torch.tensor([4.0, 1.0])), 1)
        >>> float(a.norm()), float(b.norm())
        (2.0, 2.0)
    """
    left, values, right = torch.linalg.svd(weight.float(), full_matrices=False)
    roots = values[:rank].sqrt()
    return left[:, :rank] * roots, roots[:, None] * right[:rank]


def factorise_(
    model: nn.Module, ranks: Mapping[str, int], init: Literal["svd", "random"] = "svd", seed: int = 0
) -> None:
    """Replace linear layers of a model by factors; one of Transformers then refuses ``save_pretrained``.

    `lowdim.models.save.save_factors` writes it, and `dense_` makes it a stock one again.

    Args:
        model: changed, before an optimizer is built.
        ranks: by the name of the layer.
        init: "svd", the best approximation of the weights that there are (drawn or trained); "random", fresh factors.
        seed: of fresh factors.

    Raises:
        LowdimError: a name is no linear layer's, or a rank is out of range; nothing has been changed then.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 4))
        >>> factorise_(model, {"0": 2})
        >>> model
        Sequential(
          (0): LowRankLinear(4, 4, rank=2, bias=True)
        )
    """
    made = {}
    for name, rank in ranks.items():
        layer = dict(model.named_modules()).get(name)
        if not isinstance(layer, nn.Linear):
            raise LowdimError(f"{name} is no linear layer of the model. Name such layers as named_modules() does.")
        made[name] = LowRankLinear.of(layer, rank)
        if init == "random":
            made[name].redraw_(seed, name)
    for name, layer in made.items():
        put(model, name, layer)
    if made:
        refuse_to_save(model, NOT_STOCK)


def dense_(model: nn.Module) -> None:
    """Replace all factors in a model by the dense layers that compute the same, for a stock checkpoint."""
    for name, module in list(model.named_modules()):
        if isinstance(module, LowRankLinear):
            put(model, name, module.dense())
    if refuses_to_save(model, NOT_STOCK):
        del model.__dict__["save_pretrained"]


def like_(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give a dense model the factors whose tensors are in a ``state_dict``, and load it.

    Raises:
        LowdimError: it is of another model.

    Example:
        >>> small = nn.Sequential(nn.Linear(4, 4))
        >>> factorise_(small, {"0": 1})
        >>> other = nn.Sequential(nn.Linear(4, 4))
        >>> like_(other, small.state_dict())
        >>> torch.equal(other[0].a, small[0].a)
        True
    """
    names = [name.removesuffix(".a") for name in state if name.endswith(".a") and f"{name[:-2]}.b" in state]
    factorise_(model, {name: state[f"{name}.a"].shape[1] for name in names}, "random")
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise LowdimError(f"the state is of another model: {error}") from error


def train_factors_(model: nn.Module) -> list[nn.Parameter]:
    """Freeze everything in a model but the factors of its layers; return these.

    Raises:
        LowdimError: there are none.
    """
    chosen = [p for m in model.modules() if isinstance(m, LowRankLinear) for p in (m.a, m.b)]
    if not chosen:
        raise LowdimError("the model has no factorised layer. Call factorise_ first.")
    model.requires_grad_(False)
    for parameter in chosen:
        parameter.requires_grad_(True)
    return chosen


def put(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Put a layer in the place of the one of a name.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2))
        >>> put(model, "0", nn.ReLU())
        >>> model[0]
        ReLU()
    """
    home, _, last = name.rpartition(".")
    setattr(model.get_submodule(home), last, layer)
