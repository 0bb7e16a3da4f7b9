"""What a `SparseTraining` saves, and how it goes on with it: only where weights and masks belong together."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from lowdim.core.errors import CheckpointError, LowdimError
from lowdim.train.ride import Rider
from lowdim.train.sparse.agree import alive, misfit
from lowdim.train.sparse.distributed import any_rank
from lowdim.train.sparse.layer import Explored, Held
from lowdim.train.sparse.method import Method

VERSION = 1
"""Of a state; what an older lowdim cannot read has a higher one."""


class Saved(Rider):
    """The states of a `SparseTraining`: those it makes, and those that it takes or refuses."""

    goes_on = ", with masks=training.masks to go on with the masks that it has"

    method: Method
    pattern: str
    seed: int
    total_steps: int | None
    layers: tuple[Held, ...]
    targets: dict[str, int]
    history: list[dict[str, Any]]
    _explored: dict[str, Explored]
    _memory: dict[str, Any]
    _observers: dict[str, Any]
    _shake: float
    _restart: bool
    _agree: bool
    _unproven: Mapping[str, Any] | None
    _drawn: bool

    @abstractmethod
    def _watch(self, step: int) -> None:
        """Prepare the layers for a step."""

    def state_dict(self) -> dict[str, Any]:
        """Return what resuming needs beside the model's and the optimizer's own: tensors, numbers and text."""
        return {
            "version": VERSION,
            "recipe": self._recipe(),
            "step": self.step,
            "shake": self._shake,
            "restart": self._restart,
            "masks": {layer.name: layer.state() for layer in self.layers},
            "alive": {layer.name: alive(layer.parameter) for layer in self.layers},
            "explored": {name: seen.state() for name, seen in self._explored.items()},
            "memory": dict(self._memory),
            "observers": {name: observer.state_dict() for name, observer in self._observers.items()},
            "history": list(self.history),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a ``state_dict`` was taken; the model and the optimizer load their own.

        They do so before this, or, as long as the model has the dense weights that it was made with, after it: the
        next step then finds out whether they fit.

        Raises:
            LowdimError: it is of another model, another recipe or other weights; nothing has been changed then.
        """
        self._check(state)
        why = misfit(self.layers, state, self._agree)
        if why and self._unproven is None and not self._waits():
            self._give_back()
            raise LowdimError(why)
        self._load(state, proven=not why)

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on where a ``state_dict`` was taken, with weights that the model has read already.

        Raises:
            LowdimError: as for ``load_state_dict``; this gets off then, and leaves the weights as it found them.
        """
        try:
            self._check(state)
            if why := misfit(self.layers, state, self._agree):
                raise CheckpointError(why)
        except LowdimError:
            self._give_back()
            self.remove()
            raise
        self._load(state)

    def follow(self, earlier: Saved) -> None:
        """Go on with the masks that an earlier run has left of the same weights, in a run of its own length.

        Raises:
            LowdimError: other weights are sparse, or they were written since; this gets off then, and leaves the
                weights as it found them.
        """
        state, mine = earlier.state_dict(), self._recipe()
        other = [key for key in ("layers", "pattern") if state["recipe"][key] != mine[key]]
        why = f"it had other {other[0]}" if other else misfit(self.layers, state, self._agree)
        if why:
            self._give_back()
            self.remove()
            raise CheckpointError(f"the masks of the training before cannot be kept: {why}. Or make a new callback")
        begun = {"step": 0, "shake": 0.0, "memory": {}, "history": []}
        same = repr(self.method) == repr(earlier.method)
        self._load({**state, **begun, "observers": state["observers"] if same else {}})

    def _give_back(self) -> None:
        for layer in self.layers:
            layer.give_back()

    def _waits(self) -> bool:
        written = [layer.name for layer in self.layers if not layer.waits]
        return not (any_rank(written) if self._agree else written)

    def _check(self, state: Mapping[str, Any]) -> None:
        """Refuse a state of another model or another recipe."""
        if not {"recipe", "masks"} <= state.keys():
            raise LowdimError(f"this state was not saved by SparseTraining; it holds {sorted(state)[:5]}")
        if state.get("version", VERSION) > VERSION:
            raise LowdimError(
                f"this state has version {state['version']}; this lowdim reads {VERSION}. Upgrade lowdim."
            )
        for key, value in self._recipe().items():
            if state["recipe"].get(key) != value:
                raise LowdimError(
                    f"this state was saved with another {key}: {state['recipe'].get(key)!r}, now {value!r}. "
                    "Construct the model and SparseTraining as they were in the run that is resumed"
                )

    def _load(self, state: Mapping[str, Any], proven: bool = True) -> None:
        for layer in self.layers:
            layer.load(state["masks"][layer.name], proven)
            self._explored[layer.name].load(state["explored"][layer.name])
        for name, held in state["observers"].items():
            self._observers[name].load_state_dict(held)
        self.step, self._shake, self._memory = state["step"], state["shake"], dict(state["memory"])
        self._restart = state.get("restart", False)
        self.history = list(state["history"])
        self._unproven, self._drawn = None if proven else state, False
        self._watch(self.step + 1)

    def _prove(self) -> None:
        """Refuse to step weights that are not those of the state that was loaded.

        Raises:
            LowdimError: see above.
        """
        assert self._unproven is not None
        if why := misfit(self.layers, self._unproven, self._agree):
            raise LowdimError(why)
        self._unproven = None
        self.settle()
        self._forget()

    def _forget(self, *_: Any) -> None:
        """Let the optimizer forget what is off, when it has loaded a state."""
        for layer in self.layers:
            layer.clear_state()

    def _recipe(self) -> dict[str, Any]:
        return {
            "method": repr(self.method),
            "pattern": self.pattern,
            "seed": self.seed,
            "total_steps": self.total_steps,
            "layers": {layer.name: list(layer.shape) for layer in self.layers},
            "targets": dict(self.targets),
        }
