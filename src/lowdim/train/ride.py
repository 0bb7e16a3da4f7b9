"""What an optimizer step is, for all that ride on it: closures, steps within steps, skipped steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any, ClassVar
from weakref import WeakKeyDictionary, ref

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from lowdim.core.errors import LowdimError


class Rider(ABC):
    """Something that acts at every step of an optimizer, between the gradients and their use, and after it.

    Construct it after the optimizer and let it `Ride.board`; then train as before. Steps that a GradScaler skips do not
    count: riders hear nothing of them. Another optimizer that would step its weights is refused, until it gets off.

    Attributes:
        step: optimizer steps done.
        goes_on: what to add when it is made again over another optimizer, for messages.
    """

    step: int = 0
    goes_on: ClassVar[str] = ""

    def weights(self) -> Iterable[tuple[str, Tensor]] | None:
        """Return the weights, with their names if known, that no other optimizer may step; None for all of its own."""
        return None

    @abstractmethod
    def gradients(self, step: int) -> bool:
        """Act on the gradients of a step (counted from 1), which are there but not used yet.

        Returns:
            Whether this takes the step's place: the optimizer then finds nothing to do.
        """

    @abstractmethod
    def stepped(self, step: int) -> None:
        """Act on the weights after a step."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return what resuming needs besides the states of the model and the optimizer."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a ``state_dict`` was taken."""

    @abstractmethod
    def remove(self) -> None:
        """Get off, for good."""

    # What the loops of others tell a rider beside the steps; none of it must be answered.

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on from a ``state_dict`` where the model has read its weights already, so that the two must fit."""
        self.load_state_dict(state)

    def follow(self, earlier: Any) -> None:  # noqa: B027
        """Go on with what an earlier rider of this kind left of the same model, in a run of its own length."""

    def settle(self, *averages: nn.Module) -> None:  # noqa: B027
        """Act on weights that others have written since the last step, and on averages of them."""

    def finish(self) -> None:
        """End a run: say what is not as it was asked for, and get off."""
        self.remove()


def optimizer_of(optimizer: Any) -> Optimizer:
    """Return the optimizer whose step is taken, out of wrappers such as those of accelerate.

    Raises:
        LowdimError: it is not a torch optimizer.
    """
    while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = inner
    if not isinstance(optimizer, Optimizer):
        raise LowdimError(f"optimizer must be a torch.optim.Optimizer; got {type(optimizer).__name__}")
    return optimizer


def one_gradient(optimizer: Optimizer, calls: int) -> None:
    """Refuse an optimizer that has called its closure more than once in a step.

    Raises:
        LowdimError: see above.
    """
    if calls > 1:
        raise LowdimError(
            f"{type(optimizer).__name__} calls its closure more than once in a step, so there is no one gradient to "
            "act on; use an optimizer of one gradient per step"
        )


class Observer(Rider):
    """A rider that a training takes along for what its method needs to see; the weights are that training's."""

    def weights(self) -> tuple[()]:
        """Return none."""
        return ()


class Ride:
    """The steps of one optimizer, as its riders see them; they act in the order in which they got on.

    Args:
        optimizer: whose step hooks are taken. They keep the ride alive, so that it lives as long as the optimizer.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._riders: list[Rider] = []
        self._depth, self._in_closure = 0, False
        self._ready = self._void = False
        self._closure: Callable[[], Any] | None = None
        self._hidden: list[tuple[nn.Parameter, Tensor | None]] = []
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
        self._handles = [
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
            *(p.register_post_accumulate_grad_hook(self._arrived) for p in parameters),
        ]

    @staticmethod
    def board(optimizer: Optimizer, rider: Rider) -> Ride:
        """Let a rider on, behind those already there.

        Args:
            optimizer: to ride on, out of wrappers such as those of accelerate.
            rider: who gets on.

        Raises:
            LowdimError: it is not a torch optimizer.
        """
        optimizer = optimizer_of(optimizer)
        known = _RIDES.get(optimizer)
        ride = known() if known else None
        if ride is None or not ride._riders:
            ride = Ride(optimizer)
            _RIDES[optimizer] = ref(ride)
            _watch()
        ride._riders.append(rider)
        return ride

    def leave(self, rider: Rider) -> None:
        """Let a rider off; when the last one leaves, the hooks go too."""
        self._riders[:] = [other for other in self._riders if other is not rider]
        if not self._riders:
            for handle in self._handles:
                handle.remove()

    @property
    def under_way(self) -> bool:
        """Whether a step has begun and not ended."""
        return self._depth > 0

    # ---------------------------------------------------------------- before the step

    def _arrived(self, parameter: Tensor) -> None:
        """Note that gradients arrive: no step is under way, even if the last one broke off halfway."""
        if not self._in_closure:
            self._depth = 0
            self._hidden.clear()

    def _before(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        closure = kwargs.get("closure") or next((a for a in args if callable(a)), None)
        if closure not in (None, self._closure):  # a step of its own, even if the last one broke off
            self._depth = 0
        self._depth += 1
        if self._depth > 1:  # an optimizer whose step calls that of its base class runs the hooks of both
            return None
        # A fused optimizer is not kept from its step by a GradScaler but told that a gradient overflowed; it then
        # does nothing by itself.
        overflown = getattr(optimizer, "found_inf", None)
        self._ready, self._void = False, overflown is not None and bool(overflown)
        if closure is None:
            self._gradients(optimizer)
            return None
        wrapped = self._closure = self._around(optimizer, closure)
        return tuple(wrapped if a is closure else a for a in args), {
            key: wrapped if value is closure else value for key, value in kwargs.items()
        }

    def _around(self, optimizer: Optimizer, closure: Callable[[], Any]) -> Callable[[], Any]:
        """Let riders act between a closure, which computes the gradients inside the step, and their use."""
        calls = 0

        def compute() -> Any:
            nonlocal calls
            calls += 1
            one_gradient(optimizer, calls)
            self._in_closure = True
            self._hidden.clear()
            try:
                loss = closure()
            finally:
                self._in_closure = False
            self._gradients(optimizer)
            return loss

        return compute

    def _gradients(self, optimizer: Optimizer) -> None:
        """Let every rider act on the gradients, once; they all see them, whoever takes the step's place."""
        if self._ready or self._void:
            return
        self._ready = True
        replaced = [rider.gradients(rider.step + 1) for rider in tuple(self._riders)]
        if any(replaced):
            # A parameter without a gradient is one that optimizers leave alone, its momentum and its count of steps
            # included. Zeros would not do: momentum and weight decay would go on.
            held = [p for group in optimizer.param_groups for p in group["params"]]
            self._hidden[:] = [(parameter, parameter.grad) for parameter in held]
            for parameter in held:
                parameter.grad = None

    # ---------------------------------------------------------------- after the step

    def _after(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._depth == 0:  # of a step that began before anyone got on
            return
        self._depth -= 1
        if self._depth or self._void:
            return
        for parameter, gradient in self._hidden:  # for those who read gradients after the step
            parameter.grad = gradient
        self._hidden.clear()
        self._closure = None
        for rider in tuple(self._riders):
            step = rider.step + 1
            rider.stepped(step)
            rider.step = step


# A ride knows its optimizer, through its riders, so a strong reference here would keep both for ever.
_RIDES: WeakKeyDictionary[Optimizer, ref[Ride]] = WeakKeyDictionary()


@cache
def _watch() -> None:
    """Look at the steps of all optimizers from now on."""
    register_optimizer_step_pre_hook(_refuse_others)


def _refuse_others(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse to step weights whose riders are on another optimizer, since they would stand still.

    Raises:
        LowdimError: names the weight, the rider and the way to change the optimizer.
    """
    others = [(mine, ride) for mine, known in list(_RIDES.items()) if (ride := known()) and mine is not optimizer]
    others = [(m, ride) for m, ride in others if ride._riders and not (ride.under_way or _belongs(optimizer, m))]
    if not others:
        return
    closed = bool(kwargs.get("closure") or any(map(callable, args)))
    stepped = {id(p) for group in optimizer.param_groups for p in group["params"] if closed or p.grad is not None}
    for mine, ride in others:
        for rider in ride._riders:
            held = rider.weights()
            if held is None:
                held = [("", p) for group in mine.param_groups for p in group["params"]]
            for name, weight in held:
                if id(weight) in stepped:
                    raise LowdimError(_standing_still(optimizer, mine, rider, name or f"a weight {list(weight.shape)}"))


def _belongs(optimizer: Optimizer, other: Optimizer) -> bool:
    """Tell whether an optimizer's step holds that of another, or is part of it."""
    parts = [each for value in vars(other).values() for each in (value if isinstance(value, tuple) else (value,))]
    return any(each is other for each in vars(optimizer).values()) or any(each is optimizer for each in parts)


def _standing_still(optimizer: Optimizer, mine: Optimizer, rider: Rider, name: str) -> str:
    kind = type(rider).__name__
    return (
        f"this {type(optimizer).__name__} would step {name}, but {kind} rides on another optimizer "
        f"({type(mine).__name__}) and would stand still. Call remove() on that {kind}, then make one over the new "
        f"optimizer{rider.goes_on}; nothing has been changed"
    )
