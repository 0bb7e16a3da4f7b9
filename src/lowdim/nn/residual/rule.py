"""What one block does with the stream and its two branches: the whole of what a placement decides."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rule:
    """One residual step, for a branch F that is attention first and the MLP then.

    x becomes ``closes(skip * gate(x) + ramp * leaves(F(scale * enters(x))))``, where ``enters``, ``leaves`` and
    ``closes`` are norms that are there or not. Where nothing closes the step, the gate takes the sum instead of x.

    Attributes:
        enters: whether a norm takes what enters the branch (Pre-LN).
        leaves: whether a norm takes what leaves the branch (Sandwich).
        closes: whether a norm takes the sum (Post-LN).
        scale: factor of what enters, after the norm (LayerNorm Scaling).
        skip: factor of the stream in the sum (DeepNorm).
        gates: learned gates of a block: 0, 1 for both branches, or 2 (GPAS).
        ramp: steps until the branch counts in full (ProRes); 0: from the beginning.
        power: what the share of the ramp is raised to.

    Example:
        >>> POST == Rule(enters=False, closes=True), PRE.plain, POST.plain
        (True, True, False)
    """

    enters: bool = True
    leaves: bool = False
    closes: bool = False
    scale: float = 1.0
    skip: float = 1.0
    gates: int = 0
    ramp: float = 0.0
    power: float = 1.0

    @property
    def plain(self) -> bool:
        """Whether the step adds a branch to the stream and does nothing else to the sum."""
        return not self.closes and not self.gates and self.skip == 1.0

    @property
    def norms(self) -> tuple[bool, bool, bool]:
        """Which norms there are."""
        return self.enters, self.leaves, self.closes


PRE = Rule()
POST = Rule(enters=False, closes=True)
SANDWICH = Rule(leaves=True)
