"""Parameters that hold no plain layer's weight, and what they are."""

from __future__ import annotations

from torch import nn
from torch.nn.utils import parametrize

RAW = ("_g", "_v", "_orig")
"""How the parameters end that the hooks of ``torch.nn.utils`` compute a weight from."""
_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)


def embedded(model: nn.Module) -> dict[int, str]:
    """Return the weights of a model's embeddings, and whatever is tied to them, by id, with what they are."""
    tied: dict[int, str] = {}
    tables = {id(m.weight): "embedding" for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)}
    for name, module in model.named_modules():
        weight = module._parameters.get("weight")
        if id(weight) in tables and not isinstance(module, nn.Embedding | nn.EmbeddingBag):
            tied[id(weight)] = f"embedding, tied to {name}"
    return tables | tied


def why_unknown(module: nn.Module, attribute: str) -> str:
    """Return why a parameter cannot be sparse.

    Example:
        >>> why_unknown(nn.Bilinear(2, 3, 4), "weight")
        'Bilinear is no linear, convolutional, recurrent or attention layer'
    """
    kind = type(module).__name__
    if isinstance(module, parametrize.ParametrizationList):
        return "parametrized: the weight is computed anew from it; remove_parametrizations first"
    if attribute.endswith("_orig") and f"{attribute.removesuffix('_orig')}_mask" in module._buffers:
        return "pruned by torch.nn.utils.prune; call prune.remove first, and give its mask as masks="
    if attribute.endswith(RAW) and module._forward_pre_hooks:
        return f"reparametrized by a hook of {kind}: the weight is computed anew from it; remove the hook first"
    if isinstance(module, _NORMS):
        return "norm"
    if "bias" in attribute:
        return "bias"
    return f"{kind} is no linear, convolutional, recurrent or attention layer"
