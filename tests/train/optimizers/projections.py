"""Networks, optimizers and ranks that the tests of projected optimizers share."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import torch
from tests.train.gloo import joined
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import LlamaConfig, LlamaForCausalLM

from lowdim.nn.int8 import Int8Weight
from lowdim.train.optimizers.apollo import Scaling
from lowdim.train.optimizers.galore import GaLore
from lowdim.train.optimizers.lazy import LazySVD
from lowdim.train.optimizers.projected import Projected
from lowdim.train.optimizers.projector import Projector
from lowdim.train.optimizers.projectors import SVD, Power
from lowdim.train.optimizers.q_galore import QGaLore

STEPS, BATCH = 6, 12
INT8 = QGaLore(rank=3, gap=2, inner="adamw", weight_decay=0.1)
PROJECTORS: dict[str, Projector] = {
    "svd": SVD(rank=3, gap=2, scale=1.0),
    "full": Power(rank=3, gap=2, scale=1.0, side="full"),
    "lazy": LazySVD(rank=3, gap=1, scale=1.0, queue=2),
    "apollo": Scaling(rank=3, gap=2),
}


def net(seed: int = 0) -> nn.Sequential:
    """Return a network with a tall matrix and a wide one."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 14), nn.Tanh(), nn.Linear(14, 4))


def square(seed: int = 0) -> nn.Sequential:
    """Return a network whose halves of matrices are whole groups of 256."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 16))


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=40, max_position_embeddings=32, **sizes))


def data(step: int) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(step)
    return torch.randn(BATCH, 6, generator=source), torch.randint(4, (BATCH,), generator=source)


def long(step: int) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(step)
    return torch.randn(BATCH, 16, generator=source), torch.randint(16, (BATCH,), generator=source)


def loss(model: nn.Module, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, steps: range, part: slice = slice(None), batches: Any = data
) -> None:
    for step in steps:
        x, y = batches(step)
        loss(model, (x[part], y[part])).backward()
        optimizer.step()
        optimizer.zero_grad()


def weights(model: nn.Module) -> Tensor:
    found = [getattr(p, "full_tensor", lambda p=p: p)() for p in model.parameters()]
    return torch.cat([p.detach().flatten() for p in found])


def reachable_bytes(optimizer: torch.optim.Optimizer, *known: Tensor) -> int:
    """Return the bytes of every storage that the optimizer leads to, but for those of known tensors."""
    seen, wanted, stack = set(), {}, [optimizer.__dict__]
    apart = {t.untyped_storage().data_ptr() for t in known}
    while stack:
        thing = stack.pop()
        if id(thing) in seen or isinstance(thing, (type, str, type(gc))) or callable(thing):
            continue
        seen.add(id(thing))
        if isinstance(thing, Tensor) and hasattr(thing, "__tensor_flatten__"):
            stack += [getattr(thing, name) for name in thing.__tensor_flatten__()[0]]
        elif isinstance(thing, Tensor):
            wanted[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
            stack += [thing.grad] if thing.is_leaf and thing.grad is not None else []
        elif isinstance(thing, dict):
            stack += [*thing.keys(), *thing.values()]
        elif isinstance(thing, (list, tuple, set, frozenset)):
            stack += thing
        elif hasattr(thing, "__dict__"):
            stack.append(vars(thing))
    return sum(size for place, size in wanted.items() if place not in apart)


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    """Return AdamW; its ``eps`` is above the rounding of small gradients, which is all that is off their diagonal."""
    return torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.1, eps=1e-4)


def ranked(rank: int, size: int, home: str) -> None:
    """Train copies and shards on one of several ranks, and write what comes of it."""
    part, found = slice(rank * BATCH // size, (rank + 1) * BATCH // size), {}
    with joined(rank, size, home):
        for name, projector in PROJECTORS.items():
            copies = DistributedDataParallel(net(rank))
            train(copies, Projected(adamw(copies), projector, _matrices(copies)), range(STEPS), part)
            found[f"ddp-{name}"] = weights(copies).tolist()
            shards, optimizer = _sharded(projector)
            train(shards, optimizer, range(STEPS // 2), part)
            state = dict(zip(("model", "optimizer"), get_state_dict(shards, optimizer), strict=True))
            state_dict_saver.save(state, checkpoint_id=f"{home}/{name}")
            shards, optimizer = _sharded(projector)
            state = dict(zip(("model", "optimizer"), get_state_dict(shards, optimizer), strict=True))
            state_dict_loader.load(state, checkpoint_id=f"{home}/{name}")
            model, inner = state["model"], state["optimizer"]
            set_state_dict(shards, optimizer, model_state_dict=model, optim_state_dict=inner)
            train(shards, optimizer, range(STEPS // 2, STEPS), part)
            found[f"fsdp-{name}"] = weights(shards).tolist()
        copies = net(rank)
        optimizer = QGaLore(rank=3, gap=2).build(copies)
        train(DistributedDataParallel(copies), optimizer, range(STEPS), part)
        found["ddp-int8"] = weights(copies).tolist()
        for cut, wanted in (("cut", copies), ("late", fully_shard(net()))):
            try:
                fully_shard(wanted) if cut == "cut" else INT8.build(wanted)
            except ValueError as error:
                found[cut] = str(error)
        found["fsdp-int8"] = _int8(part, home)
        shards = fully_shard(net())
        for name, make in (
            (
                "adafactor",
                lambda: Projected(torch.optim.Adafactor(shards.parameters()), SVD(rank=1), _matrices(shards)),
            ),
            ("built", lambda: GaLore(rank=2, inner="adafactor").build(shards)),
        ):
            try:
                make()
            except ValueError as error:
                found[name] = str(error)
        try:
            Projected(adamw(net()), SVD(rank=1), layerwise=True)
        except ValueError as error:
            found["layerwise"] = str(error)
    (Path(home) / f"{rank}.json").write_text(json.dumps(found))


def _int8(part: slice, home: str) -> list[Any]:
    """Train INT8 shards, with a stop in the middle; return weights, types and how many codes were gathered."""
    gathered = list[int]()
    real = Int8Weight.fsdp_pre_all_gather

    def counting(self: Any, mesh: Any) -> Any:
        gathered.append(self.codes.numel())
        return real(self, mesh)

    Int8Weight.fsdp_pre_all_gather = counting  # type: ignore[method-assign]
    for half in (range(STEPS // 2), range(STEPS // 2, STEPS)):
        shards = square(half.start)  # the second begins with other weights, and reads those of the first
        INT8.prepare_(shards)
        fully_shard(shards)
        optimizer = INT8.build(shards)
        if half.start:
            state = dict(zip(("model", "optimizer"), get_state_dict(shards, optimizer), strict=True))
            state_dict_loader.load(state, checkpoint_id=f"{home}/int8")
            set_state_dict(shards, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
        train(shards, optimizer, half, part, long)
        state = dict(zip(("model", "optimizer"), get_state_dict(shards, optimizer), strict=True))
        state_dict_saver.save(state, checkpoint_id=f"{home}/int8")
    Int8Weight.fsdp_pre_all_gather = real  # type: ignore[method-assign]
    held = [type(p.to_local()).__name__ for p in shards.parameters()]
    return [weights(shards).tolist(), held, sorted(set(gathered))]


def _sharded(projector: Projector) -> tuple[nn.Sequential, Projected]:
    shards = net()
    for layer in (shards[0], shards[2]):
        fully_shard(layer)
    fully_shard(shards)
    return shards, Projected(adamw(shards), projector, _matrices(shards))


def _matrices(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.dim() == 2]


def matrix(rows: int, cols: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))


def decaying(rows: int, cols: int, seed: int = 0) -> Tensor:
    """Return a matrix whose singular values fall as 1 / k^1.5, as those of gradients do."""
    u, _, v = torch.linalg.svd(matrix(rows, cols, seed), full_matrices=False)
    return (u / torch.arange(1, u.shape[1] + 1) ** 1.5) @ v


def stepped(projector: Projector, gradient: Tensor, make: Any, **settings: Any) -> Tensor:
    """Return the change of a zero weight in one step."""
    weight = nn.Parameter(torch.zeros_like(gradient))
    weight.grad = gradient.clone()
    Projected(make([weight], lr=1.0, **settings), projector).step()
    return weight.detach()
