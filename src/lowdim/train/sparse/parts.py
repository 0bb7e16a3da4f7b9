"""One expert's matrix within the parameter that holds those of all experts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class Part(nn.Parameter):
    """A matrix of a 3-D parameter, as if it were a parameter of its own.

    It shares the whole's memory and gradient; the optimizer goes on to train the whole. What is written through a part
    counts as a version of this part alone, what is written to the whole (by the optimizer, from a checkpoint) as one of
    every part.

    Example:
        >>> import torch
        >>> whole = nn.Parameter(torch.zeros(3, 2, 2))
        >>> part = Part(whole, 1)
        >>> part.data.fill_(5.0).sum() == whole.sum(), part_of(whole, part).shape
        (tensor(True), torch.Size([2, 2]))
    """

    whole: nn.Parameter
    place: int

    def __new__(cls, whole: nn.Parameter, place: int) -> Part:
        """Take the part at a place of the first dimension."""
        made = super().__new__(cls, whole.data[place], requires_grad=False)
        made.whole, made.place = whole, place
        return made

    def here(self) -> Part:
        """Return this part, in the memory that the whole has now: a loop may have put its data elsewhere."""
        if (home := self.whole.data[self.place]).data_ptr() != self.data_ptr():
            self.data = home
        return self

    @property
    def grad(self) -> Tensor | None:  # type: ignore[override]
        """The whole's gradient of this part."""
        return None if self.whole.grad is None else self.whole.grad[self.place]

    @property
    def requires_grad(self) -> bool:  # type: ignore[override]
        """Whether the whole is trained."""
        return self.whole.requires_grad

    @property
    def _version(self) -> int:  # type: ignore[override]
        return Tensor._version.__get__(self) + self.whole._version  # type: ignore[attr-defined, no-any-return]

    def register_post_accumulate_grad_hook(self, hook: Callable[[Tensor], None]) -> RemovableHandle:
        """Call a hook when the whole has its gradient."""
        handle: RemovableHandle = self.whole.register_post_accumulate_grad_hook(hook)
        return handle

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("a part of a parameter is not saved; save the whole")


def whole_of(parameter: nn.Parameter) -> nn.Parameter:
    """Return what the optimizer trains: the parameter itself, or the one that it is a part of."""
    return parameter.whole if isinstance(parameter, Part) else parameter


def part_of(tensor: Tensor, parameter: nn.Parameter) -> Tensor:
    """Return what of a tensor of the whole's shape belongs to a parameter, sharing its memory."""
    return tensor[parameter.place] if isinstance(parameter, Part) else tensor
