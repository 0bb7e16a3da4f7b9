"""What every placement of norms answers: the rule of one block. How it gets into a network is the same for all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lowdim.core.settings import Settings
from lowdim.nn.residual.rule import Rule

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from lowdim.nn.residual.sites import Site


@dataclass(frozen=True)
class Placement(Settings, ABC):
    """Where the norms of decoder blocks stand and what scales the branches: the settings of one paper.

    Blocks are found by structure and must be of one of two forms as they come: a norm before each branch, as in Llama
    and GPT-2, or one before and one after, as in Gemma 3. Every class of Transformers has one or the other, or is
    refused.
    """

    @abstractmethod
    def rule(self, block: int, count: int, own: Rule) -> Rule:
        """Return the rule of one block.

        Args:
            block: counted from 1.
            count: blocks in the network.
            own: the rule that the block comes with, `PRE` or `SANDWICH`.

        Raises:
            LowdimError: the placement makes no sense in this network.
        """

    def apply_(self, model: PreTrainedModel) -> None:
        """Give a decoder this placement, in place.

        Parameters keep their names; what a placement adds has names of its own (``BLOCK.self_attn_norm.weight``,
        ``BLOCK.gpas.gate``). The config remembers the placement, so that `lowdim.load` restores it from what
        ``save_pretrained`` writes, and stock Transformers refuses to load it, unless nothing but weights has changed.

        Args:
            model: a causal LM of Transformers, before it is wrapped or compiled and before the optimizer is made.

        Raises:
            LowdimError: the model has a placement, its blocks are of neither form, or the placement makes no sense in
                it; nothing has been changed.
        """
        from lowdim.nn.residual.mount import mount  # torch and transformers

        mount(model, self)

    def fold_(self, model: PreTrainedModel) -> None:
        """Turn a placed decoder into a stock one that computes the same, in place.

        A model that the placement leaves a stock one is left as it is.

        Raises:
            LowdimError: the model does not have this placement, or no stock model computes the same; nothing has been
                changed.
        """
        from lowdim.nn.residual.fold import fold

        fold(model, self)

    def check_start(self, trained: bool) -> None:
        """Refuse a network whose weights are not those that the method begins with.

        Raises:
            LowdimError: the method sets the weights of an untrained network, and this one has been trained.
        """

    def start(self, model: Any, sites: Sequence[Site]) -> list[Callable[[], None]]:
        """Return what sets the weights that an untrained network begins with, where the paper has its own.

        Raises:
            LowdimError: they cannot be told; nothing is changed before the last of these is known.
        """
        return []
