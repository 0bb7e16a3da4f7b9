"""Sharded weights (FSDP2) and ranks that must agree."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from lowdim.core.errors import LowdimError


def full(tensor: Tensor) -> Tensor:
    """Return the whole tensor, gathered from all ranks if it is sharded; every rank must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """Return what this rank holds of a tensor, sharing its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def part(whole: Tensor, like: Tensor) -> Tensor:
    """Return this rank's part of a tensor that every rank has whole, cut as ``like`` is."""
    if not isinstance(like, DTensor):
        return whole
    return local(distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None))


def ranks_agree(model: nn.Module) -> bool:
    """Tell whether the model is one of several copies or shards that must have the same masks."""
    return dist.is_available() and (
        isinstance(model, DistributedDataParallel) or any(isinstance(p, DTensor) for p in model.parameters())
    )


def check_agreement(value: int, what: str) -> None:
    """Compare a number over all ranks.

    Raises:
        LowdimError: it differs.
    """
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    ends = torch.tensor([value, -value], device=device)
    dist.all_reduce(ends, op=dist.ReduceOp.MAX)
    if int(ends[0]) != -int(ends[1]):
        raise LowdimError(
            f"{what} differ between ranks. Ranks must see the same weights and, at an update, the same averaged "
            "gradients: wrap the model in DistributedDataParallel or fully_shard before training starts"
        )


def any_rank(names: list[str]) -> list[str]:
    """Return the names that any rank has; every rank must call it."""
    gathered: list[list[str]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(gathered, names)
    return [name for part in gathered for name in part]
