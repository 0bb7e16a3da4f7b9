"""The model of a run: made, or read; and spread over processes."""

from __future__ import annotations

import copy
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from transformers import AutoModelForCausalLM, PreTrainedModel

from lowdim.core.errors import RecipeError
from lowdim.core.random import derive_seed
from lowdim.data.calibration import positions
from lowdim.models import ranks
from lowdim.models.disk.source import Source
from lowdim.models.load import load, read_placed
from lowdim.nn.blocks import find_blocks, recompute_
from lowdim.nn.int8 import Int8Weight
from lowdim.nn.residual.added import Gates, Ramp
from lowdim.train.pretrain import layers
from lowdim.train.pretrain.recipe import Pretraining
from lowdim.train.ride import Rider
from lowdim.train.riders.prores import ResidualWarmup
from lowdim.train.riders.spectral import SpectralDecay

if TYPE_CHECKING:
    from lowdim.train.pretrain.prepare import Prepared


def make(
    recipe: Pretraining, config: Any, source: Source | None, device: torch.device
) -> tuple[PreTrainedModel, bool | dict[nn.Parameter, Tensor]]:
    """Return the model that a run begins with, in training mode, and the fp32 copies of weights in bfloat16.

    Shards are cut from fp32 weights, and rounded where they are computed with, so that they need no copies.

    Args:
        recipe: of the run.
        config: of a model that starts from nothing.
        source: of one that is trained on.
        device: where it goes.
    """
    if source is not None:
        model = load(source.path, torch.float32, "cpu", recipe.trust_remote_code)
        if not recipe.keeps_zeros:
            _tell_zeros(model, source.spec)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(recipe.seed, "pretrain", "weights"))
            model = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=torch.float32)
            own = recipe.model.get("embedding_std") if isinstance(recipe.model, dict) else None
            if own is not None:
                nn.init.normal_(model.get_input_embeddings().weight, std=float(own))
            if recipe.placement is not None:
                recipe.placement.apply_(model)
    if replaces(recipe, source):
        assert recipe.placement is not None
        recipe.placement.apply_(model)
    layers.factorise(recipe, model)
    nn.Module.to(model, device)
    model.config.use_cache = False
    copies: dict[nn.Parameter, Tensor] = {}
    if recipe.precision != "float32" and not (recipe.precision == "bfloat16" and recipe.parallel == "fsdp"):
        copies = narrow_(model, recipe.precision == "bfloat16")
    if recipe.checkpointing:
        recompute_(model)
    return model.train(), copies or False


def replaces(recipe: Pretraining, source: Source | None) -> bool:
    """Tell whether a model that is trained on gets another placement than it has."""
    if source is None or recipe.placement is None:
        return False
    return read_placed(source.path, recipe.trust_remote_code)[1] != recipe.placement


def narrow_(model: nn.Module, keep: bool) -> dict[nn.Parameter, Tensor]:
    """Let a model compute in bfloat16; return its fp32 weights, if they are to be kept. Gates of a placement stay fp32.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> len(narrow_(layer, keep=True)), layer.weight.dtype
        (2, torch.bfloat16)
    """
    gates = {id(p) for module in model.modules() if isinstance(module, Gates) for p in module.parameters()}
    copies: dict[nn.Parameter, Tensor] = {}
    for parameter in model.parameters():  # buffers keep fp32: rotary frequencies need it
        if id(parameter) not in gates:
            wide, parameter.data = parameter.data, parameter.data.bfloat16()
            if keep:
                copies[parameter] = wide
    return copies


def _tell_zeros(model: PreTrainedModel, spec: str) -> None:
    """Warn that nothing holds the zeros of a pruned model."""
    matrices = [p.detach() for block in find_blocks(model)[1] for p in block.parameters() if p.dim() > 1]
    zeros = 1 - sum(int(torch.count_nonzero(p)) for p in matrices) / max(1, sum(p.numel() for p in matrices))
    if zeros >= 0.01 and ranks.rank() == 0:
        warnings.warn(
            f"{zeros:.0%} of the weights in the blocks of {spec} are zero, and pre-training holds none of them there: "
            "the output is dense. lowdim recover trains a pruned model and keeps its zeros",
            stacklevel=2,
        )


def riders(prepared: Prepared, model: nn.Module, optimizer: Optimizer) -> list[Rider]:
    """Return what rides on the optimizer of a run's model, spread over processes if there are several.

    Ramps of a placement that have not ended, what sets the decay, masks, and what freezes blocks: in this order, so
    that a block that is to be frozen takes part in its last step.
    """
    recipe = prepared.recipe
    found: list[Rider] = []
    if any(isinstance(module, Ramp) and float(module.a) < 1.0 for module in model.modules()):
        found.append(ResidualWarmup(model, optimizer))
    if recipe.decay is not None:
        found.append(SpectralDecay(model, optimizer, recipe.decay))
    if recipe.from_scratch is not None:
        found.append(layers.masked(prepared, recipe.from_scratch, model, optimizer))
    if recipe.sampling is not None:
        found.append(layers.sampled(prepared, recipe.sampling, model, optimizer))
    return found


def check_length(recipe: Pretraining, config: Any) -> None:
    """Refuse sequences beyond the model's positions.

    Raises:
        RecipeError: names both.
    """
    most = positions(config)
    if most is not None and recipe.length > most:
        raise RecipeError(
            f"length={recipe.length} is more than the {most} positions of the model. Take at most length={most}, or "
            "set model.max_position_embeddings."
        )


def check_vocabulary(tokenizer: Any, config: Any) -> None:
    """Refuse a tokenizer with more tokens than the embedding has rows.

    Raises:
        RecipeError: names both.
    """
    rows = config.get_text_config(decoder=True).vocab_size
    if len(tokenizer) > rows:
        raise RecipeError(
            f"the tokenizer has {len(tokenizer):,} tokens, and the model's embedding {rows:,} rows. Set "
            f"model.vocab_size={len(tokenizer)}, or take a smaller tokenizer."
        )


def check_types(recipe: Pretraining, model: nn.Module) -> None:
    """Refuse to shard weights of two types.

    Raises:
        RecipeError: says what to take.
    """
    if recipe.parallel == "fsdp" and len({parameter.dtype for parameter in model.parameters()}) > 1:
        raise RecipeError(
            "parallel=fsdp shards weights of one type, and the gates of this placement stay fp32 under "
            "precision=pure-bfloat16. Take precision=bfloat16, or parallel=ddp."
        )


def spread(model: PreTrainedModel, recipe: Pretraining) -> nn.Module:
    """Return the model as one of several copies, or its shards: every block apart, then what is around them."""
    if recipe.parallel == "ddp":
        devices = [torch.cuda.current_device()] if next(model.parameters()).is_cuda else None
        waits = recipe.sampling is None  # for the gradients of all weights; of frozen ones there come none
        return DistributedDataParallel(model, device_ids=devices, find_unused_parameters=not waits)
    if ranks.size() == 1 and any(isinstance(p, Int8Weight) for p in model.parameters()):
        raise RecipeError("parallel=fsdp gathers INT8 weights from two processes or more. Take parallel=ddp for one.")
    mixed = recipe.precision == "bfloat16"
    policy = MixedPrecisionPolicy(torch.bfloat16, reduce_dtype=torch.float32) if mixed else MixedPrecisionPolicy()
    for block in find_blocks(model)[1]:
        fully_shard(block, mp_policy=policy)
    fully_shard(model, mp_policy=policy)
    return model
