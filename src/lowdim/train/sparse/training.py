"""Sparse training in two lines: masks that ride on an optimizer's hooks."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lowdim.core import allocation as allocations
from lowdim.core import pattern as patterns
from lowdim.core.allocation import Allocation
from lowdim.core.errors import LowdimError, RecipeError
from lowdim.core.masks import Masks
from lowdim.core.pattern import Pattern
from lowdim.models.structure.selection import named_weights
from lowdim.train.ride import Ride, optimizer_of
from lowdim.train.sparse.agree import disagreement, overwritten, zeros
from lowdim.train.sparse.distributed import any_rank, check_agreement, ranks_agree
from lowdim.train.sparse.layer import Explored, Held
from lowdim.train.sparse.method import Method
from lowdim.train.sparse.moment import Moment
from lowdim.train.sparse.parts import whole_of
from lowdim.train.sparse.plan import Request, build, check_method
from lowdim.train.sparse.saved import Saved
from lowdim.train.sparse.state import claim, per_weight, release


class SparseTraining(Saved):
    """Keeps chosen weights of a model sparse while an optimizer trains it, and moves the masks as a method says.

    Construct it after the optimizer, then train as before: masks ride on the optimizer's step hooks. Weights
    that are off are exact zeros after every step, gradient clipping sees the gradient of the active weights
    alone (except where an update looks at the dense gradient), and the optimizer's
    memory of a weight is cleared whenever it goes off or on. ``every`` of a method counts optimizer steps, so
    gradient accumulation, and steps that a GradScaler skips, need no special care.

    Weights are simulated sparse: held dense, with zeros, for any layer on any device, at a dense network's
    speed. Layers of ``lowdim.nn.csr`` hold and multiply only what is kept; they are found and trained
    by the same methods.

    Args:
        model: any module; sharded by ``fully_shard`` or wrapped in DistributedDataParallel before or after.
        optimizer: holds all weights that become sparse.
        sparsity: share of zeros over all sparse layers at the end, from 0 to below 1. Left out where masks are given.
        allocation: how it is spread: the name of an allocation ("erk", "alpha"), the object (``OWL(m=7)``), or the
            sparsity of every layer by name. One that reads weights reads those the model has now; one that looks at
            inputs is measured first, see `lowdim.train.sparse.measured.measured`.
        method: such as ``RigL(every=100)``; ``Static()`` keeps masks where they are.
        include: globs of the weights that become sparse; see `lowdim.models.structure.selection.select`.
        exclude: globs of weights that stay dense.
        total_steps: optimizer steps of the whole run, which schedules need.
        seed: of every random choice; the global generators are not used.
        pattern: "unstructured", "fan-in", N:M, ROWSxCOLS or "gates:N", or the object; see `lowdim.core.pattern.parse`.
        masks: bool tensors by parameter name to start from, instead of drawing: from `SNIP`, a ticket, another run.

    Raises:
        RecipeError: an argument is out of range, or names nothing.
        LowdimError: the optimizer lacks a weight, or two weights share memory.

    Example:
        >>> import torch
        >>> from lowdim.train import Static
        >>> model = nn.Linear(16, 16)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> sparsity = SparseTraining(model, optimizer, sparsity=0.75, method=Static())
        >>> int((model.weight != 0).sum())
        64
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        sparsity: float | None = None,
        allocation: str | Mapping[str, float] | Allocation = "erk",
        method: Method,
        include: Sequence[str] | None = None,
        exclude: Sequence[str] | None = None,
        total_steps: int | None = None,
        seed: int = 0,
        pattern: str | Pattern = "unstructured",
        masks: Mapping[str, Tensor] | None = None,
    ) -> None:
        check_method(method, total_steps)
        self.model, self.optimizer = model, optimizer_of(optimizer)
        legal = patterns.parse(pattern)
        self.method, self.total_steps, self.seed, self.pattern = method, total_steps, seed, str(legal)
        asked = (sparsity, allocations.parse(allocation), include, exclude, legal, masks, seed)
        plan = build(Request(model, self.optimizer, method, *asked))
        self.layers, self.targets, self._weights = plan.layers, plan.targets, plan.weights
        method.check(self.layers)
        self.history: list[dict[str, Any]] = []
        self._explored = {layer.name: Explored(layer.size) for layer in self.layers}
        for layer in self.layers:
            self._explored[layer.name].add(layer.positions())
        self._memory: dict[str, Any] = {}
        self._shake, self._pending, self._replaced = 0.0, False, False
        self._restart = False
        self._idle: list[str] = []
        self._told = False
        self._unproven: Mapping[str, Any] | None = None
        self._drawn = masks is None
        self._agree = ranks_agree(model)
        self._observers = method.observers(model, self.optimizer, self.layers, total_steps)
        self._ride = Ride.board(self.optimizer, self)
        self._handles = [handle for layer in self.layers for handle in layer.listen(lambda: self._looks(self.step + 1))]
        self._handles.append(self.optimizer.register_load_state_dict_post_hook(self._forget))
        claim(self, self.layers)
        self._watch(1)

    # ---------------------------------------------------------------- what users read

    @property
    def masks(self) -> Masks:
        """The masks by parameter name, True where a weight is active, packed and on the CPU."""
        found: dict[str, list[Tensor]] = {}
        for layer in self.layers:
            found.setdefault(layer.name.partition("[")[0], []).append(layer.mask())
        stacked = {layer.name.partition("[")[0] for layer in self.layers if layer.name.endswith("]")}
        return Masks.from_dict({n: torch.stack(masks) if n in stacked else masks[0] for n, masks in found.items()})

    def model_sparsity(self) -> float:
        """Return the share of zeros that masks make among all weights of two or more dimensions, dense ones too."""
        dense = sum(weight.parameter.numel() for weight in self._weights if weight.dense)
        size = sum(layer.size * layer.units.weights for layer in self.layers)
        kept = sum(layer.kept * layer.units.weights for layer in self.layers)
        return (size - kept) / max(1, size + dense)

    def sparsity(self, name: str | None = None) -> float:
        """Return the share of zeros of one layer (of all experts in one parameter), or of all sparse layers.

        Warns where the weights have fewer, because somebody else has written them since the last step.
        """
        chosen = self._named(name)
        if self._unproven is None and (said := disagreement(chosen)):
            warnings.warn(said, stacklevel=2)
        return zeros(chosen)

    def explored(self, name: str | None = None) -> float:
        """Return R_s, the share of weights that were ever active, in one layer or in all (arXiv 2102.02887).

        Layers of more than 2^28 weights are not followed and do not count; NaN if there are no others.
        """
        chosen = [layer for layer in self._named(name) if self._explored[layer.name].followed]
        size = sum(layer.size for layer in chosen)
        return sum(len(self._explored[layer.name]) for layer in chosen) / size if size else float("nan")

    def _named(self, name: str | None) -> Sequence[Held]:
        found = [layer for layer in self.layers if name is None or name in _names_of(layer.name)]
        if not found:
            raise LowdimError(f"no sparse layer is named {name!r}; there are: {self._names()}")
        return found

    def _names(self) -> str:
        return ", ".join(layer.name for layer in self.layers)

    def __str__(self) -> str:
        """Return the table of what is sparse and what is not."""
        lines = [
            f"{self.method}, {self.pattern}, step {self.step}: {zeros(self.layers):.2%} zeros in the sparse layers, "
            f"{self.model_sparsity():.2%} of all weights of two or more dimensions"
        ]
        width = max(len(weight.name) for weight in self._weights)
        shapes = {layer.name: layer.shape for layer in self.layers}
        for weight in self._weights:
            shape = "x".join(map(str, shapes.get(weight.name, weight.parameter.shape)))
            state = f"dense ({weight.dense})" if weight.dense else f"{zeros(self._named(weight.name)):7.2%} zeros"
            lines.append(f"  {weight.name:{width}} {shape:>18}  {state}")
        return "\n".join(lines)

    # ---------------------------------------------------------------- what users do

    def shake(self, fraction: float, *, restart: bool = False) -> None:
        """Ask for one drop-and-grow of ``fraction`` of the active weights at the next optimizer step.

        It comes whatever the method's schedule says, and in place of a scheduled update of that step.

        Args:
            fraction: of the active weights of every layer.
            restart: whether weights that are dropped and grown again at once lose their value and optimizer state.

        Raises:
            RecipeError: the fraction is not in (0, 1].
        """
        if not 0.0 < fraction <= 1.0:
            raise RecipeError(f"fraction must be above 0 and at most 1; got {fraction!r}")
        self._shake, self._restart = float(fraction), restart
        self._watch(self.step + 1)

    def apply_(self, module: nn.Module) -> None:
        """Zero what is off in another module with the same weights, such as a moving average or a copy.

        Raises:
            LowdimError: a weight is missing or has another shape; nothing has been changed then.
        """
        (masks := self.masks).apply_(named_weights(module, masks))

    def settle(self, *averages: nn.Module) -> None:
        """Zero what is off in weights that were written since the last step, such as by an average, and in averages."""
        for layer in self.layers:
            layer.clear_weight()
        masks = self.masks if averages else {}
        for named in (named_weights(average, masks) for average in averages):
            for name in masks.keys() & named.keys():
                named[name].data.masked_fill_(~masks[name].to(named[name].device), 0.0)

    def finish(self) -> None:
        """End a run: warn of masks that never moved, of fewer zeros than asked for or than masks leave; `remove`."""
        have, wanted = self.sparsity(), sum(self.targets.values())
        if not self.history and (why := self.method.stands_still(self.total_steps)):
            warnings.warn(why, stacklevel=2)
        if sum(layer.kept for layer in self.layers) > wanted:
            asked = 1.0 - wanted / sum(layer.size for layer in self.layers)
            warnings.warn(
                f"the weights handed back are those of step {self.step} of {self.total_steps} and have {have:.2%} "
                f"zeros, fewer than the {asked:.2%} asked for, which {type(self.method).__name__} reaches later",
                stacklevel=2,
            )
        self.remove()

    def remove(self) -> None:
        """Take all hooks off; weights keep their zeros, but nothing keeps them zero from here on."""
        for attached in (*self._handles, *self._observers.values()):
            attached.remove()
        self._ride.leave(self)
        release(self.layers)

    # ---------------------------------------------------------------- around the optimizer's step

    def gradients(self, step: int) -> bool:
        """Move masks in the place of the step, or clear what its gradients hold of weights that are off."""
        for layer in self.layers:
            layer.check()
        self._compare()
        self._pending = self._moves(step) and self._gradients_are_finite(step) and self._any_moves(step)
        self._replaced = self._pending and self.method.order == "replace_step"
        if self._replaced:
            self._update(step)
            return True
        held = self._pending and self._looks(step)
        for layer in self.layers:
            if held:
                layer.hold_gradient()
            layer.clear_gradient()
        return False

    def stepped(self, step: int) -> None:
        """Move masks, or keep them where they are; zero what is off."""
        if self._pending and not self._replaced:
            self._update(step)
        for layer in self.layers:
            if self._replaced:
                layer.clear_gradient()
            layer.release()
            layer.clear_weight()
            if step == 1 and self.method.moves:
                per_weight(self.optimizer, layer.parameter, layer.name)
        self._shake, self._pending, self._replaced = 0.0, False, False
        self._watch(step + 1)

    def _compare(self) -> None:
        """Warn, before a step zeroes them, of weights that are off and were written by somebody else."""
        if self._unproven is not None:
            self._prove()
        said = disagreement([layer for layer in self.layers if layer.touched])
        if not said and self._drawn:
            said = overwritten(self.layers)
        self._drawn = False
        if said:
            warnings.warn(said, stacklevel=5)

    def weights(self) -> list[tuple[str, Tensor]]:
        """Return the weights that masks act on."""
        return [(layer.name, whole_of(layer.parameter)) for layer in self.layers]

    def _moves(self, step: int) -> bool:
        """Tell whether a step moves masks."""
        return bool(self._shake) or self.method.due(step, self.total_steps)

    def _looks(self, step: int) -> bool:
        """Tell whether it looks at the dense gradient of a step, as most methods do when they move masks."""
        if self.method.wants_every_gradient:
            return True
        return bool(self._shake) or (self.method.wants_gradient and self._moves(step))

    def _watch(self, step: int) -> None:
        for layer in self.layers:
            layer.watch(self._looks(step))

    def _gradients_are_finite(self, step: int) -> bool:
        wrong = [layer.name for layer in self.layers if not layer.finite()]
        if self._agree:
            wrong = any_rank(wrong)
        if wrong:
            warnings.warn(
                f"the mask update of step {step} is skipped: the gradient of {wrong[0]} holds NaN or Inf",
                stacklevel=5,
            )
            self.history.append({"step": step, "skipped": f"gradient of {wrong[0]} holds NaN or Inf"})
        return not wrong

    def _any_moves(self, step: int) -> bool:
        """Find the layers without a gradient, whose masks stand still; say so once, and tell whether others move."""
        looks, prunes = self._looks(step), self.method.changes_density and not self._shake
        still = [layer.name for layer in self.layers if (looks or not prunes) and layer.still(looks, prunes)]
        self._idle = sorted(set(any_rank(still))) if self._agree else still
        # zeros are what a stacked expert without tokens gets at many a step: recorded, and not said
        left = [n.name for n in self.layers if n.name in self._idle and n.still(looks=False)]
        if left and not self._told:
            self._told = True
            warnings.warn(
                f"step {step} moves masks, but no gradient came to {', '.join(left[:5])}"
                f"{' and others' * (len(left) > 5)}: masks stand still where and when that is so. This is said "
                "once; history names the layers as idle at every update",
                stacklevel=5,
            )
        if len(self._idle) < len(self.layers) or prunes:
            return True
        self.history.append({"step": step, "skipped": "no layer has a gradient"})
        return False

    def _update(self, step: int) -> None:
        before = [layer.snapshot() for layer in self.layers]
        prunes = self.method.changes_density and not self._shake
        moment = Moment(
            step,
            self.total_steps,
            [layer for layer in self.layers if prunes or layer.name not in self._idle],
            self.targets,
            self._explored,
            self.seed,
            self._memory,
            self._observers,
            bool(self._shake) and self._restart,
            self._idle,
        )
        if self._shake:
            self.method.shake(moment, self._shake)
        else:
            self.method.update(moment)
        digest = 0
        for layer in self.layers:
            positions = layer.positions().cpu()
            self._explored[layer.name].add(positions)
            if self._agree:
                digest = zlib.crc32(positions.numpy().tobytes(), digest)
        self._note(step, [layer.changed(was) for layer, was in zip(self.layers, before, strict=True)])
        if self._agree:
            check_agreement(digest, f"the masks after step {step}")

    def _note(self, step: int, changes: Sequence[tuple[int, int]]) -> None:
        names = [layer.name for layer in self.layers]
        self.history.append(
            {
                "step": step,
                "sparsity": zeros(self.layers),
                "explored": self.explored(),
                "kept": {layer.name: layer.kept for layer in self.layers},
                **({"idle": list(self._idle)} if self._idle else {}),
                "dropped": {name: dropped for name, (dropped, _) in zip(names, changes, strict=True)},
                "grown": {name: grown for name, (_, grown) in zip(names, changes, strict=True)},
            }
        )


def _names_of(layer: str) -> tuple[str, ...]:
    """Return by what names a layer is meant: its own, its parameter's, its module's."""
    parameter = layer.partition("[")[0]
    return layer, parameter, parameter.rpartition(".")[0]
