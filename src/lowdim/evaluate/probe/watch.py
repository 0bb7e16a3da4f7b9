"""Watching activations, modules and functions alike, while a model runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_EXACT = {"relu", "relu6", "threshold", "hardswish", "hardsigmoid"}
_SMOOTH = {
    "gelu",
    "silu",
    "mish",
    "elu",
    "selu",
    "celu",
    "leaky_relu",
    "prelu",
    "rrelu",
    "tanh",
    "hardtanh",
    "softplus",
}


class Watch(TorchFunctionMode):
    """While it is active, sums up |output| of every activation, neuron by neuron.

    Args:
        model: whose modules give the names.
        smooth: also activations that never are exactly zero.

    Attributes:
        sums: by the name of the layer that ran last before the activation ("#2" and so on for further
            activations behind it): where the activation is, and the sums, fp64 [neurons].
    """

    def __init__(self, model: nn.Module, smooth: bool) -> None:
        super().__init__()
        self.sums: dict[str, tuple[str, Tensor]] = {}
        self._watched = _EXACT | _SMOOTH if smooth else _EXACT
        self._names = {module: name for name, module in model.named_modules()}
        self._keys: dict[tuple[str, str], str] = {}
        self._running: list[nn.Module] = []
        self._last, self._axis = "", -1
        self._handles: list[Any] = []

    def __enter__(self) -> Watch:
        for module in self._names:
            self._handles.append(module.register_forward_pre_hook(self._enter))
            self._handles.append(module.register_forward_hook(self._leave, always_call=True))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for handle in self._handles:
            handle.remove()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "").removesuffix("_")
        if name == "hardtanh":  # what nn.ReLU6 calls
            lowest = args[1] if len(args) > 1 else (kwargs or {}).get("min_val", -1.0)
            name = name if lowest else "relu6"
        if name in self._watched and isinstance(out, Tensor):
            self._add(name, out)
        return out

    def _enter(self, module: nn.Module, inputs: Any) -> None:
        if not self._running:  # another pass
            self._last, self._axis = "", -1
        self._running.append(module)

    def _leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._running.pop()
        parameters = list(module.parameters(recurse=False))
        gain = isinstance(module, nn.PReLU) or "Norm" in type(module).__name__
        if parameters and not gain and not _has_children(module):
            self._last = self._names[module]
            self._axis = 1 if hasattr(module, "kernel_size") else -1

    def _add(self, function: str, out: Tensor) -> None:
        module = self._running[-1]
        site = self._names[module]
        if _has_children(module) or any(True for _ in module.parameters(recurse=False)):
            site = f"{site}.{function}".lstrip(".")  # a function that the module calls
        axis = self._axis if out.dim() > 2 else -1
        key = self._key(self._last or site, site)
        others = [i for i in range(out.dim()) if i != axis % out.dim()]
        total = out.detach().abs().double().sum(others) if others else out.detach().abs().double()
        self.sums[key] = (site, self.sums[key][1] + total if key in self.sums else total)

    def _key(self, layer: str, site: str) -> str:
        if (layer, site) not in self._keys:
            before = sum(known == layer for known, _ in self._keys)
            self._keys[layer, site] = f"{layer}#{before + 1}" if before else layer
        return self._keys[layer, site]


def _has_children(module: nn.Module) -> bool:
    return any(True for _ in module.children())
