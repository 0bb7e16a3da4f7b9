"""LoRA and DoRA on a pruned model whose merge keeps the zeros."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora.layer import Linear, LoraLayer, LoraVariant
from peft.tuners.lora.variants import DoraLinearVariant
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from lowdim.core.errors import LowdimError
from lowdim.core.masks import Masks
from lowdim.models.structure.selection import inventory, named_weights, plain_name
from lowdim.models.structure.zeros import is_pruned, refuse_packed, zeros_in

_DORA = (DoraLinearVariant,)


def mask_lora(model: nn.Module, masks: Mapping[str, Tensor] | None = None) -> Masks:
    """Let LoRA or DoRA change no weight that is zero: in training, and so in the merge, which then keeps all zeros.

    The weight of an adapted layer becomes ``W + M * (s B A)`` instead of ``W + s B A``, where M is 1 where W is kept, s
    is the adapter's scaling and B A its product. Call it once, after ``get_peft_model`` or ``from_pretrained``,
    and train; what PEFT merges (``merge_and_unload``) is then what was trained, to rounding. Called on an
    adapter that was trained without it, it takes the part of the change that falls on zeros away: a masked merge, of
    another function than was trained. Adapters on disk do not know of it: call it again wherever one is loaded, and
    after ``add_adapter``.

    A step does the arithmetic of full fine-tuning: the product M * (B A) is made dense, layer by layer, and
    made again in the backward pass instead of being held.

    Args:
        model: from PEFT, or with adapters in it; its linear layers have LoRA, rank-stabilised or not, or DoRA, one
            adapter or several.
        masks: which weights are kept, by their names in the model without PEFT; None takes the zeros.

    Returns:
        The masks of the layers that the adapters change.

    Raises:
        LowdimError: an adapter of a layer with zeros is another than that (a convolution, a quantised layer, a
            trained copy); the model was not pruned; masks are not of these weights. Nothing has been changed then.
    """
    refuse_packed(model)
    _refuse_others(model, masks)
    layers = dict(_layers(model))
    if not layers:
        raise LowdimError(f"{type(model).__name__} has no layer with LoRA. Call get_peft_model first, then mask_lora")
    found = _zeros(layers) if masks is None else _given(model, masks)
    changed = {name: layer for name, layer in layers.items() if _key(name, found)}
    for name, layer in changed.items():
        _check(name, layer)
    for name, layer in changed.items():
        off = ~found[_key(name, found)]
        for adapter in layer.lora_A:
            kind = MaskedDoRA if isinstance(layer.lora_variant.get(adapter), _DORA) else Masked
            layer.lora_variant[adapter] = kind(off.t() if layer.fan_in_fan_out else off)
    return Masks.from_dict({name: found[_key(name, found)] for name in changed})


class Masked(LoraVariant):  # type: ignore[misc]
    """Plain LoRA whose change is zero where the weight is: what PEFT calls for one adapter of one layer.

    Args:
        off: bool [out, in], True where the weight is zero.
    """

    def __init__(self, off: Tensor) -> None:
        self.off = off.contiguous()

    def supports_lora_conversion(self) -> bool:
        """Tell that another adapter made out of this one would be without the mask."""
        return False

    def init(self, module: Any, adapter_name: str, **kwargs: Any) -> None:
        """Do nothing: A and B begin as in plain LoRA."""

    def change(self, module: Any, adapter: str) -> Tensor:
        """Return M * (s B A), in the orientation of the layer's weight."""
        delta: Tensor = module.get_delta_weight(adapter)
        off = self._off(delta.device)
        return delta.masked_fill(off.t() if module.fan_in_fan_out else off, 0.0)

    def merge_safe(self, module: Any, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """Return the merged weight."""
        return orig_weight + self.change(module, active_adapter).to(orig_weight.dtype)

    def merge_unsafe(self, module: Any, active_adapter: str, orig_weight: Tensor) -> None:
        """Merge in place."""
        orig_weight.data += self.change(module, active_adapter)

    def unmerge(self, module: Any, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """Return the weight without the change."""
        return orig_weight.data - self.change(module, active_adapter).to(orig_weight.dtype)

    def forward(self, module: Any, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any) -> Tensor:
        """Add what the adapter changes to the output of the base layer."""
        a, b = module.lora_A[active_adapter], module.lora_B[active_adapter]
        scale, off = module.scaling[active_adapter], self._off(x.device)

        def product(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
            made: Tensor = nn.functional.linear(x, (b @ a).masked_fill(off, 0.0)) * scale
            return made

        x = module.lora_dropout[active_adapter](x)
        added = checkpoint(product, x, a.weight, b.weight, use_reentrant=False, preserve_rng_state=False)
        out: Tensor = result + added if b.bias is None else result + added + b.bias * scale
        return out

    def _off(self, device: torch.device) -> Tensor:
        self.off = self.off.to(device)
        return self.off


class MaskedDoRA(Masked):
    """DoRA whose zeros stay: rows of W + M * (s B A), each brought to the length that is trained for it.

    As in PEFT, no gradient goes through the length of the row. Zeros of W are zeros of what is merged, since rows are
    only scaled. A row that was pruned as a whole stays zero.
    """

    def __init__(self, off: Tensor) -> None:
        super().__init__(off)
        self._merged: dict[str, Tensor] = {}

    def _factor(self, module: Any, adapter: str, whole: Tensor) -> Tensor:
        """Return what each row of W + M * (s B A), ``[out, in]``, is multiplied by."""
        length = torch.linalg.norm(whole.detach(), dim=1).clamp_min(torch.finfo(whole.dtype).tiny)
        factor: Tensor = module.lora_magnitude_vector[adapter].weight.to(whole.dtype) / length
        return factor

    def _with(self, module: Any, adapter: str, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return W + M * (s B A) and the factors of its rows, both in the orientation of the layer's weight."""
        whole = weight + self.change(module, adapter).to(weight.dtype)
        factor = self._factor(module, adapter, whole.t() if module.fan_in_fan_out else whole)
        return whole, factor if module.fan_in_fan_out else factor[:, None]

    def merge_safe(self, module: Any, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """Return the merged weight."""
        whole, factor = self._with(module, active_adapter, orig_weight.float())
        self._merged[active_adapter] = factor
        return (whole * factor).to(orig_weight.dtype)

    def merge_unsafe(self, module: Any, active_adapter: str, orig_weight: Tensor) -> None:
        """Merge in place."""
        orig_weight.data = self.merge_safe(module, active_adapter, orig_weight.data)

    def unmerge(self, module: Any, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """Return the weight without the change."""
        factor = self._merged.pop(active_adapter)
        apart = (orig_weight.data.float() / factor).nan_to_num()
        return (apart - self.change(module, active_adapter)).to(orig_weight.dtype)

    def forward(self, module: Any, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any) -> Tensor:
        """Add what the adapter changes to the output of the base layer."""
        a, b = module.lora_A[active_adapter], module.lora_B[active_adapter]
        length = module.lora_magnitude_vector[active_adapter].weight
        scale, off, base = module.scaling[active_adapter], self._off(x.device), module.get_base_layer().weight

        def product(x: Tensor, a: Tensor, b: Tensor, _: Tensor) -> Tensor:
            weight = (base.t() if module.fan_in_fan_out else base).to(x.dtype)
            whole = weight + ((b @ a).masked_fill(off, 0.0) * scale).to(x.dtype)
            factor = self._factor(module, active_adapter, whole)
            return nn.functional.linear(x, factor[:, None] * whole - weight)

        x = module.lora_dropout[active_adapter](x)
        added = checkpoint(product, x, a.weight, b.weight, length, use_reentrant=False, preserve_rng_state=False)
        out: Tensor = result + added
        return out


# ---------------------------------------------------------------- which layers, and what is refused


def _layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the layers with LoRA, by the names of their weights in the model without PEFT; embeddings have no zeros."""
    for name, module in (inside := _inside(model)).named_modules():
        if isinstance(module, LoraLayer) and not isinstance(module.get_base_layer(), nn.Embedding):
            yield plain_name(f"{name}.weight", inside), module


def _inside(model: nn.Module) -> nn.Module:
    wrapper = next((m for m in model.modules() if isinstance(m, PeftModel)), None)
    return model if wrapper is None else wrapper.get_base_model()


def _key(name: str, masks: Mapping[str, Any]) -> str:
    """Return under which name masks have a weight; empty if they have not."""
    return next((key for key in (name, name.removesuffix(".weight")) if key in masks), "")


def _zeros(layers: Mapping[str, Any]) -> Masks:
    for name, layer in layers.items():
        if not getattr(layer.get_base_layer(), "weight", torch.empty(0, dtype=torch.uint8)).is_floating_point():
            _refuse_kind(name, layer)
    try:
        return zeros_in((name, layer.get_base_layer().weight) for name, layer in layers.items())
    except LowdimError as error:
        raise LowdimError(
            f"{error}. Some ways of init_lora_weights (pissa, olora, corda, loftq) write the base weights anew, zeros "
            "too: leave it at its default"
        ) from error


def _given(model: nn.Module, masks: Mapping[str, Tensor]) -> Masks:
    """Return the masks given, all of which must be of weights that the model has."""
    packed = masks if isinstance(masks, Masks) else Masks.from_dict(masks)
    weights = {
        name.replace(".base_layer.", ".").replace(".original_module.", "."): parameter
        for name, parameter in named_weights(_inside(model)).items()
        if ".modules_to_save." not in name
    }
    packed.check(weights)
    return packed


def _check(name: str, layer: Any) -> None:
    """Refuse a layer with zeros whose change cannot be masked."""
    if type(layer) is not Linear or not isinstance(layer.get_base_layer(), nn.Linear | Conv1D):
        _refuse_kind(name, layer)
    if layer.get_base_layer().weight.requires_grad:
        raise LowdimError(
            f"{name} is trained itself, beside its LoRA, and would lose its zeros. Freeze it, or train the model "
            "without PEFT, with KeepZeros"
        )
    for adapter, variant in layer.lora_variant.items():
        if not isinstance(variant, (Masked, _DORA)):
            raise LowdimError(
                f"adapter {adapter!r} of {name} is {type(variant).__name__}, neither LoRA nor DoRA: its merge does not "
                "keep zeros. Make it without that; use_dora and use_rslora may stay"
            )


def _refuse_kind(name: str, layer: Any) -> None:
    raise LowdimError(
        f"{name} is held by {type(layer).__module__}.{type(layer).__name__} over "
        f"{type(layer.get_base_layer()).__name__}: its zeros cannot be kept, which is done for LoRA on unquantised "
        "Linear and Conv1D. Leave it out of target_modules, or load the model unquantised"
    )


def _refuse_others(model: nn.Module, masks: Mapping[str, Any] | None) -> None:
    """Refuse methods of PEFT other than LoRA, what is merged, and copies of pruned layers that PEFT trains in full."""
    for name, module in (inside := _inside(model)).named_modules():
        if isinstance(module, BaseTunerLayer) and not isinstance(module, LoraLayer):
            raise LowdimError(
                f"{name} is a {type(module).__module__}.{type(module).__name__}; zeros are kept for LoRA alone. Use "
                "LoraConfig, or merge it and zero the model afterwards: masks.apply_(model)"
            )
        if isinstance(module, BaseTunerLayer) and module.merged:
            raise LowdimError(f"{name} is merged with {module.merged_adapters}: call unmerge_adapter first")
        copied = module.original_module if isinstance(module, AuxiliaryTrainingWrapper) else nn.Identity()
        for weight in inventory(copied):
            plain = plain_name(f"{name}.{weight.name}", inside)
            if is_pruned(weight) if masks is None else _key(plain, masks):
                raise LowdimError(
                    f"modules_to_save trains a copy of {plain}, which would lose its zeros. Take it out of "
                    "modules_to_save, and into target_modules"
                )
