"""A few blocks of a model train at a time, and the optimizer remembers no others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from lowdim.core.errors import CheckpointError, LowdimError, RecipeError
from lowdim.core.random import generator
from lowdim.models import ranks
from lowdim.nn.blocks import find_blocks
from lowdim.train.ride import Ride, Rider, optimizer_of
from lowdim.train.riders.ows import outlier_shares
from lowdim.train.riders.sampling import Sampling


class LayerSampling(Rider):
    """Freezes all blocks of a model but a few, drawn anew every so many steps of its optimizer.

    Blocks are drawn one after the other without replacement, with given probabilities of those that are left, so that
    the chance to be among them is not ``active`` times the probability. Frozen weights need no gradient, stay as they
    are to the bit, and lose their gradients and, unless the sampling keeps it, their optimizer state: at the step
    after which they are frozen, at the first step of a fresh run, and in `load_state_dict`. Whatever is outside the
    blocks trains on, and what was frozen in a block before stays frozen. What is drawn depends on the seed and the
    step alone: it is the same on all ranks and after a resume, before which the optimizer may be restored or after.

    Args:
        model: in training; find its blocks by structure. Under DistributedDataParallel with ``find_unused_parameters``.
        optimizer: of all its weights, built before any block was frozen.
        sampling: `lowdim.train.LISA` or `lowdim.train.OWS`.
        data: batches to measure outliers on, for `OWS`; see `lowdim.train.riders.ows.outlier_shares`.
        probabilities: one number per block instead, of any sum.
        seed: of the draws.
        total_steps: what callbacks hand to every rider; not needed.

    Attributes:
        probabilities: of each block to be drawn first.
        active: the blocks that train now, ascending.
        history: of every choice: the step it is from, the blocks, and the bytes of optimizer state just before it.

    Raises:
        RecipeError: the sampling cannot be had with these blocks, data or probabilities.
        LowdimError: the optimizer lacks weights of a block, or the model's wrapper does not let weights freeze.

    Example:
        >>> from lowdim.train.riders.lisa import LISA
        >>> blocks = nn.ModuleList(nn.Linear(2, 2) for _ in range(4))
        >>> model = nn.ModuleDict({"layers": blocks, "head": nn.Linear(2, 2)})
        >>> sampling = LayerSampling(model, torch.optim.AdamW(model.parameters()), LISA(active=1))
        >>> sum(block.weight.requires_grad for block in blocks), model["head"].weight.requires_grad
        (1, True)
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        sampling: Sampling,
        *,
        data: Any = None,
        probabilities: Sequence[float] | None = None,
        seed: int = 0,
        total_steps: int | None = None,
    ) -> None:
        self._optimizer, self._sampling, self._seed = optimizer_of(optimizer), sampling, seed
        inner = _unwrapped(model)
        _, blocks = find_blocks(inner)
        self._blocks = [[p for p in block.parameters() if p.requires_grad] for block in blocks]
        self._check()
        self.probabilities = self._probabilities(inner, data, probabilities)
        self.history: list[dict[str, Any]] = []
        self.active: tuple[int, ...] = ()
        table = getattr(inner, "get_input_embeddings", lambda: None)()
        still = table is not None and not any(p.requires_grad for p in table.parameters())
        self._inputs = inner if still and hasattr(inner, "enable_input_require_grads") else None
        if self._inputs is not None:  # a checkpointed block recomputes nothing for inputs without gradient
            self._inputs.enable_input_require_grads()
        self._ride = Ride.board(self._optimizer, self)
        self._draw(0)

    def _check(self) -> None:
        held = {id(p) for group in self._optimizer.param_groups for p in group["params"]}
        for index, parameters in enumerate(self._blocks):
            if not parameters or not {id(p) for p in parameters} <= held:
                lacking = "weights that the optimizer has not" if parameters else "no trainable weight"
                raise LowdimError(
                    f"block {index} has {lacking}, so that it would never train. Build the optimizer of all weights, "
                    "before any block is frozen."
                )
        if any(isinstance(p, DTensor) for parameters in self._blocks for p in parameters):
            raise LowdimError(
                "fully_shard decides in its first pass which weights get gradients, so that blocks cannot take "
                "turns. Use DistributedDataParallel(find_unused_parameters=True)."
            )
        if self._sampling.active > len(self._blocks):
            raise RecipeError(f"active={self._sampling.active} of {len(self._blocks)} blocks. Take fewer.")

    def _probabilities(self, model: nn.Module, data: Any, given: Sequence[float] | None) -> list[float]:
        if data is not None and given is not None:
            raise RecipeError("data and probabilities both say how likely a block is. Leave one of them out.")
        measure = None if data is None else partial(outlier_shares, model, data)
        worths = list(given) if given is not None else self._sampling.worths(len(self._blocks), measure)
        if len(worths) != len(self._blocks) or not all(0 <= worth < float("inf") for worth in worths):
            raise RecipeError(f"probabilities must be {len(self._blocks)} numbers of at least 0; got {worths}")
        if sum(worth > 0 for worth in worths) < self._sampling.active:
            raise RecipeError(
                f"active={self._sampling.active}, but only {sum(worth > 0 for worth in worths)} blocks have a "
                f"probability above 0: {worths}. Take fewer, or a smaller m."
            )
        return [worth / sum(worths) for worth in worths]

    # ---------------------------------------------------------------- steps

    def weights(self) -> list[tuple[str, Tensor]]:
        """Return those of the blocks."""
        return [("", p) for parameters in self._blocks for p in parameters]

    def gradients(self, step: int) -> bool:
        """Leave the gradients: frozen weights have none, and no state from the first step of a fresh run on."""
        if step == 1:  # not before: an optimizer may have read a checkpoint whose blocks `load_state_dict` is to tell
            self._release()
        return False

    def stepped(self, step: int) -> None:
        """Draw other blocks, if their turn has come."""
        if step % self._sampling.every == 0:
            self._draw(step)
            self._release()

    def _draw(self, step: int) -> None:
        source = generator(self._seed, "layers", step)
        chances = torch.tensor(self.probabilities, dtype=torch.float64)
        found = torch.multinomial(chances, self._sampling.active, generator=source)
        self.history.append({"step": step, "active": sorted(found.tolist()), "state_bytes": self.state_bytes()})
        self._freeze(self.history[-1]["active"])

    def _freeze(self, active: Sequence[int]) -> None:
        self.active = tuple(active)
        for index, parameters in enumerate(self._blocks):
            for p in parameters:
                p.requires_grad_(index in self.active)
                if index not in self.active:
                    p.grad = None

    def _release(self) -> None:
        """Let the optimizer forget the blocks that are frozen, unless the sampling keeps its state."""
        for index, parameters in enumerate(self._blocks):
            if index not in self.active and not self._sampling.keep_state:
                for p in parameters:
                    self._optimizer.state.pop(p, None)

    def state_bytes(self) -> int:
        """Return the bytes of the optimizer's state as it is now."""
        return sum(tensor.nbytes for state in self._optimizer.state.values() for tensor in _tensors(state))

    # ---------------------------------------------------------------- what is kept

    def state_dict(self) -> dict[str, Any]:
        """Return what resuming needs besides the states of the model and the optimizer."""
        return {
            "step": self.step,
            "seed": self._seed,
            "sampling": self._sampling.to_dict(),
            "probabilities": self.probabilities,
            "active": list(self.active),
            "history": self.history,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a ``state_dict`` was taken; with its probabilities, if they were measured.

        Raises:
            CheckpointError: it is of another sampling; nothing has been changed then.
        """
        mine, its = (
            (each["seed"], each["sampling"], len(each["probabilities"])) for each in (self.state_dict(), state)
        )
        if mine != its:
            raise CheckpointError(f"the state is of {its}; this is {mine}. Use the same sampling, seed and model.")
        self.step, self.probabilities = int(state["step"]), list(state["probabilities"])
        self.history = [dict(each) for each in state["history"]]
        self._freeze(state["active"])
        self._release()

    def remove(self) -> None:
        """Get off; all blocks train again."""
        self._ride.leave(self)
        for parameters in self._blocks:
            for p in parameters:
                p.requires_grad_(True)
        if self._inputs is not None:
            self._inputs.disable_input_require_grads()


def _unwrapped(model: nn.Module) -> Any:
    """Return the model inside its wrapper.

    Raises:
        LowdimError: the wrapper waits for the gradients of frozen weights.
    """
    if isinstance(model, DistributedDataParallel) and not model.find_unused_parameters:
        raise LowdimError(
            "DistributedDataParallel waits for the gradients of all weights, frozen ones too. Construct it with "
            "find_unused_parameters=True, before the blocks are sampled."
        )
    return ranks.unwrapped(model)


def _tensors(state: Any) -> Iterator[Tensor]:
    """Yield the tensors in the state of a weight."""
    for value in state.values():
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, dict):
            yield from _tensors(value)
