"""A ticket: one trained sparse network, with all that belongs to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lowdim.core.errors import CheckpointError, LowdimError, suggest
from lowdim.core.lazy import torch
from lowdim.core.masks import Masks, read_tensors, write_tensors

_KEPT, _PLAIN, _WORDS = "kept:", "state:", "mask:"


def tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return a model's own parameters and persistent buffers by name; what is tied appears once, by its first name.

    Raises:
        LowdimError: the model has truly sparse layers, whose tensors change shape with their masks.
    """
    if sparse := _truly_sparse(model):
        raise LowdimError(
            f"{next(iter(sparse)) or 'the model'} is a truly sparse layer, which a ticket cannot be written into; "
            "use a model with dense layers (CSRLinear.to_linear)"
        )
    return {name: tensor for name, (first, tensor) in _named(model).items() if name == first}


def _named(model: torch.nn.Module) -> dict[str, tuple[str, torch.Tensor]]:
    """Return every name of every tensor, with the first name of the same tensor; prefixes of wrappers are left out.

    Of a truly sparse layer the dense weight is made, in the place of its values.
    """
    from lowdim.models.structure.selection import plain_name

    sparse = _truly_sparse(model)
    first: dict[int, str] = {}
    found = {}
    for key, tensor in model.state_dict(keep_vars=True).items():
        owner, _, attribute = key.rpartition(".")
        name = plain_name(key, model)
        if owner in sparse and attribute == "values":
            name = plain_name(f"{owner}.weight".lstrip("."), model)
            found[name] = (name, sparse[owner].dense())
        elif isinstance(tensor, torch.Tensor) and not (owner in sparse and attribute in ("row_ptr", "col")):
            found[name] = (first.setdefault(id(tensor), name), tensor)
    return found


def _truly_sparse(model: torch.nn.Module) -> dict[str, Any]:
    from lowdim.nn.csr.linear import CSRLinear

    return {name: module for name, module in model.named_modules() if isinstance(module, CSRLinear)}


def _whole(tensor: Any) -> Any:
    """Return a sharded tensor gathered, any other as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def _like(target: Any, tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor sharded as its target is."""
    if not hasattr(target, "full_tensor"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(target.device), target.device_mesh, target.placements)


@dataclass(frozen=True, eq=False)
class Ticket:
    """A copy, on the CPU, of a sparse network: its weights, its masks and its buffers.

    Running statistics of norms are buffers and belong to the ticket: the weights of one ticket with the statistics
    of another are a third, worse network. Tied parameters are held once. Weights off the mask are +0.0.

    Attributes:
        state: name -> tensor, the parameters and persistent buffers in their own dtypes.
        masks: which weights are kept, by parameter name.
        score: validation score (higher is better), if one was measured.
        step: optimizer steps done when the copy was taken, if known.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(2, 1)
        >>> ticket = Ticket.of(model, {"weight": torch.tensor([[True, False]])}, score=0.9)
        >>> ticket.masks.kept(), float(ticket.state["weight"][0, 1])
        (1, 0.0)
    """

    state: Mapping[str, torch.Tensor]
    masks: Masks
    score: float | None = None
    step: int | None = None

    @classmethod
    def of(
        cls,
        model: torch.nn.Module,
        masks: Mapping[str, torch.Tensor],
        *,
        score: float | None = None,
        step: int | None = None,
    ) -> Ticket:
        """Copy a model; if it is sharded (FSDP2), all ranks must call this, and each gets the whole.

        Args:
            model: any module; it is not changed.
            masks: bool tensors of the weights' shapes by parameter name, such as ``training.masks``.
            score: validation score of these weights, higher is better.
            step: optimizer steps done.

        Raises:
            LowdimError: a mask names no weight, has another shape, or a tied weight has two masks.
        """
        named = _named(model)
        state = {
            name: _whole(tensor.detach()).to("cpu", copy=True).contiguous()
            for name, (first, tensor) in named.items()
            if name == first
        }
        packed = Masks()
        for name, mask in masks.items():
            if name not in named:
                raise LowdimError(f"no weight is named {name!r}. {suggest(name, named)}")
            first = named[name][0]
            if first in packed:
                raise LowdimError(f"the tied weight {first} has two masks, one as {name}; give it one")
            packed.add(first, mask.detach().cpu())
        packed.apply_(state)
        return cls(state, packed, score, step)

    def apply_(self, model: torch.nn.Module) -> None:
        """Write weights and buffers into a model of the same structure, in place; its parameters stay the same objects.

        Raises:
            LowdimError: the model has other tensors or shapes; nothing has been changed then.
        """
        targets = tensors(model)
        wrong = sorted(set(self.state) ^ set(targets)) or [
            name for name, tensor in self.state.items() if tensor.shape != targets[name].shape
        ]
        if wrong:
            raise LowdimError(
                f"the ticket does not fit the model: {wrong[0]!r} is in one alone or has another shape "
                f"({len(wrong)} such tensors). Build the model as the ticket's was built"
            )
        with torch.no_grad():
            for name, tensor in self.state.items():
                targets[name].copy_(_like(targets[name], tensor))

    def scored(self, score: float | None) -> Ticket:
        """Return the same ticket with another validation score; tensors are shared."""
        return replace(self, score=score)

    def state_dict(self) -> dict[str, Any]:
        """Return everything as tensors and plain values, for ``torch.save`` with ``weights_only`` loading."""
        return {
            "state": dict(self.state),
            "masks": self.masks.state_dict(),
            "score": self.score,
            "step": self.step,
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Ticket:
        """Build a ticket from a ``state_dict``."""
        masks = Masks()
        masks.load_state_dict(state["masks"])
        return cls(dict(state["state"]), masks, state["score"], state["step"])

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, whole or not at all; of masked weights the kept values alone are stored."""
        stored = {}
        for name, tensor in self.state.items():
            if name in self.masks:
                stored[_KEPT + name] = tensor[self.masks[name]]
                stored[_WORDS + name] = self.masks.packed(name)
            else:
                stored[_PLAIN + name] = tensor
        about = {
            "ticket": 1,
            "order": list(self.state),
            "shapes": {name: list(self.masks.shape(name)) for name in self.masks},
            "score": self.score,
            "step": self.step,
        }
        write_tensors(path, stored, about)

    @classmethod
    def load(cls, path: str | Path) -> Ticket:
        """Read a file written by ``save``.

        Raises:
            CheckpointError: the file is not one, or is damaged.
        """
        try:
            held, about = read_tensors(path, "ticket")
            words = {name: held[_WORDS + name] for name in about["shapes"]}
            masks = Masks()
            masks.load_state_dict({"shapes": about["shapes"], "words": words})
            state = {name: _unpack(name, held, masks) for name in about["order"]}
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from error
        except (KeyError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{path} does not hold a ticket saved by lowdim: {error}") from error
        return cls(state, masks, about["score"], about["step"])


def _unpack(name: str, held: Mapping[str, torch.Tensor], masks: Masks) -> torch.Tensor:
    if name not in masks:
        return held[_PLAIN + name]
    values = held[_KEPT + name]
    mask = masks[name]
    dense = values.new_zeros(mask.shape)
    dense[mask] = values
    return dense


@contextmanager
def borrowed(model: torch.nn.Module) -> Iterator[None]:
    """Let a model be overwritten inside the block; its weights, buffers and train/eval modes come back after it."""
    kept = {name: tensor.detach().clone() for name, tensor in tensors(model).items()}
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, tensor in tensors(model).items():
                tensor.copy_(kept[name])
        for module, mode in modes.items():
            module.training = mode
