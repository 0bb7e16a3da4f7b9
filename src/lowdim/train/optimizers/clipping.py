"""Which trainer's loop a step is in that would clip gradients which are no longer there."""

from __future__ import annotations

import traceback
from operator import attrgetter

from lowdim.core.errors import RecipeError

_TRAINERS = {
    "transformers.trainer": ("args.max_grad_norm", "max_grad_norm=0"),
    "lightning.pytorch.trainer.trainer": ("gradient_clip_val", "gradient_clip_val=None"),
    "pytorch_lightning.trainer.trainer": ("gradient_clip_val", "gradient_clip_val=None"),
}
"""Where a class ``Trainer`` is, what it clips to, and how to say that it should not."""


def refuse_clipping() -> None:
    """Refuse to be called from within a trainer that clips by the norm of all gradients.

    An optimizer is told nothing of the loop that it is in, and one that frees every gradient in the backward pass
    leaves nothing to clip, without a word. Of the loop's trainer the stack knows: it is the ``self`` of a caller.

    Raises:
        RecipeError: the trainer, its bound and the remedy.
    """
    for frame, _ in traceback.walk_stack(None):
        caller = frame.f_locals.get("self")
        for kind in type(caller).__mro__:
            if kind.__name__ == "Trainer" and kind.__module__ in _TRAINERS:
                bound, remedy = _TRAINERS[kind.__module__]
                if limit := attrgetter(bound)(caller):
                    name = bound.rpartition(".")[2]
                    raise RecipeError(
                        f"the trainer's {name}={limit:g} clips gradients by the norm of all of them, and layerwise "
                        f"updates free each in the backward pass, so that none is clipped. Say {remedy}, or leave "
                        "layerwise out."
                    )
                return
