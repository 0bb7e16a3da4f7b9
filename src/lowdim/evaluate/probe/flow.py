"""Running a network as a counter of paths: ones flow through its linear part, everything else lets them pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from lowdim.evaluate.errors import EvaluationError


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_PASSED = _words(
    "relu relu6 gelu silu mish elu selu celu leaky_relu prelu rrelu tanh hardtanh sigmoid hardsigmoid hardswish "
    "logsigmoid softplus softsign tanhshrink threshold clamp clamp_min clip abs batch_norm layer_norm group_norm "
    "instance_norm rms_norm local_response_norm normalize dropout dropout1d dropout2d dropout3d alpha_dropout "
    "feature_alpha_dropout feature_dropout softmax log_softmax float double half bfloat16 to type type_as"
)
_LAYERS = _words(
    "linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d addmm matmul mm bmm einsum "
    "bilinear __matmul__ __rmatmul__"
)
_SCALED = _words("mul multiply div divide true_divide __rmul__")
_JOINED = _words("cat concat concatenate stack")
_SUMS = _words("add sub subtract __radd__ rsub __rsub__")
_REFUSED = _words(
    "lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell scaled_dot_product_attention "
    "multi_head_attention_forward exp log pow square sqrt rsqrt reciprocal sin cos max min sort topk cumprod prod "
    "__rpow__ __rdiv__"
)
_FAR = 1e100


class PathCounter(TorchFunctionMode):
    """While it is active, tensors made from a tracked one count paths.

    Activations, norms and dropout pass their input on; maxima and means over places become sums; constants
    that are added vanish, and so do factors that are plain numbers.

    Args:
        reach: after each layer replace every count by 1 where it is positive, and likewise every gradient
            on the way back: which weights lie on a path, exactly, at any depth. Otherwise counts are kept,
            each tensor with a logarithm of its own in ``logs``, so that none overflows.
    """

    def __init__(self, reach: bool) -> None:
        super().__init__()
        self.reach = reach
        self.logs: Any = WeakIdKeyDictionary()

    def track(self, value: Any) -> Any:
        """Return ones in place of the float tensors of an input, tracked.

        Raises:
            EvaluationError: a tensor is of whole numbers, such as tokens.
        """
        if isinstance(value, tuple):
            return tuple(self.track(item) for item in value)
        if not isinstance(value, Tensor) or not value.is_floating_point():
            got = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise EvaluationError(f"paths start at float inputs; got {got}. Give the network behind its embedding")
        ones = torch.ones_like(value, dtype=torch.float64)
        self.logs[ones] = 0.0
        return ones

    def total(self, value: Any) -> tuple[Tensor, float]:
        """Return the sum over the tracked tensors of an output, and the logarithm that it is short of."""
        found = [leaf for leaf in _leaves(value) if leaf in self.logs]
        if not found:
            raise EvaluationError("no output of the network depends on its input")
        top = max(self.logs[leaf] for leaf in found)
        return sum((leaf.sum() * math.exp(self.logs[leaf] - top) for leaf in found), torch.zeros(())), top

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        tracked = [leaf for leaf in _leaves((args, kwargs)) if leaf in self.logs]
        if not tracked:
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        inplace = name.endswith("_") and not name.endswith("__")
        name = name if name.endswith("__") else name.strip("_").removesuffix("_with_indices")
        out, log = self._apply(name, func, tracked, args, kwargs)
        if inplace and out is not args[0]:
            out = args[0].copy_(out)
        for leaf in _leaves(out):
            if leaf.is_floating_point():
                self.logs[leaf] = log
        return out

    def _apply(
        self, name: str, func: Callable[..., Any], tracked: list[Tensor], args: Any, kwargs: Any
    ) -> tuple[Any, float]:
        alone = len(tracked) == 1 or name in _SUMS | _JOINED or name.endswith("_as")
        if name in _REFUSED or not alone:
            raise EvaluationError(
                f"paths are defined through sums of inputs times weights; {name!r} makes another use of activations"
            )
        log = max(self.logs[leaf] for leaf in tracked)
        first = tracked[0]
        if name in _PASSED:
            return first, log
        if name in _SCALED:
            others = [leaf != 0 for leaf in _leaves(args) if leaf is not first]
            return (first * others[0] if others else first), log
        if name in _JOINED:
            return func(self._aligned(args[0], log), *args[1:], **kwargs), log
        if name in _SUMS:
            return self._aligned(args[0], log) + self._aligned(args[1], log), log
        if "pool" in name or name in {"mean", "amax"}:
            return self._settled(_pooled(name, func, args, kwargs), log)
        out = func(*args, **kwargs)
        return self._settled(out, log) if name in _LAYERS else (out, log)

    def _aligned(self, value: Any, log: float) -> Any:
        """Bring what is added to one logarithm; what does not come from the input counts as nothing."""
        if isinstance(value, list | tuple):
            return [self._aligned(item, log) for item in value]
        if isinstance(value, Tensor):
            return value * (math.exp(self.logs[value] - log) if value in self.logs else 0.0)
        return 0.0

    def _settled(self, out: Tensor, log: float) -> tuple[Tensor, float]:
        if self.reach:
            return _Positive.apply(out), log  # type: ignore[no-untyped-call]
        top = float(out.max()) if out.numel() else 0.0
        return (out / top, log + math.log(top)) if top > _FAR else (out, log)


class _Positive(torch.autograd.Function):
    """1 where positive, forwards and backwards."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return (value > 0).to(value.dtype)

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> Tensor:
        return (gradient[0] > 0).to(gradient[0].dtype)


def _leaves(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _leaves(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item)


def _pooled(name: str, func: Callable[..., Any], args: Any, kwargs: Any) -> Tensor:
    """Sum over the places that a pooling reads."""
    if name in {"mean", "amax"}:
        return args[0].sum(*args[1:], **kwargs)  # type: ignore[no-any-return]
    x = args[0]
    dims = int(name[-2])
    if name.startswith("adaptive"):
        wanted = args[1] if len(args) > 1 else kwargs["output_size"]
        sizes = [wanted] * dims if isinstance(wanted, int) else list(wanted)
        out = getattr(F, f"adaptive_avg_pool{dims}d")(x, wanted)
        for axis, size in zip(range(-dims, 0), sizes, strict=True):
            out = out * _bins(x.shape[axis], size or x.shape[axis]).to(out).reshape(-1, *[1] * (-axis - 1))
        return out  # type: ignore[no-any-return]
    names = ["input", "kernel_size", "stride", "padding"]
    names += ["dilation", "ceil_mode"] if name.startswith("max") else ["ceil_mode"]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    if not name.startswith(("max", "avg")) or given.get("dilation", 1) not in (1, (1,) * dims):
        raise EvaluationError(f"paths through {name!r} with these settings are not counted")
    kernel, stride, padding = (
        (value,) * dims if isinstance(value, int) else tuple(value)
        for value in (given["kernel_size"], given.get("stride") or given["kernel_size"], given.get("padding", 0))
    )
    extra = 2 - dims if dims < 2 else 0
    x = x.unsqueeze(-2) if extra else x
    kernel, stride, padding = (1,) * extra + kernel, (1,) * extra + stride, (0,) * extra + padding
    pool = F.avg_pool3d if dims == 3 else F.avg_pool2d
    out = pool(x, kernel, stride, padding, given.get("ceil_mode", False), divisor_override=1)
    return out.squeeze(-2) if extra else out


def _bins(size: int, count: int) -> Tensor:
    """Return the sizes of the bins of an adaptive pooling."""
    return torch.tensor([-(-(i + 1) * size // count) - (i * size // count) for i in range(count)])
