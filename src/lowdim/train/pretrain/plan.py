"""The plan of a pre-training: weights, steps, tokens, and, where a step was timed, hours and memory."""

from __future__ import annotations

from dataclasses import dataclass

from lowdim.train.pretrain.prepare import Prepared
from lowdim.train.pretrain.sequences import Streamed


@dataclass(frozen=True)
class PretrainingPlan:
    """What a pre-training will do.

    Attributes:
        weights: of the model.
        blocks: weights inside its blocks.
        steps: of the optimizer.
        batch: sequences of a step.
        length: tokens of a sequence.
        sequences: that the training text holds; None where it is streamed.
        held: that the validation text holds.
        seconds: of the whole run, if a step was timed.
        memory: bytes that the process has held by then.
        notes: what acts on blocks and layers, in sentences.
    """

    weights: int
    blocks: int
    steps: int
    batch: int
    length: int
    sequences: int | None
    held: int
    seconds: float | None = None
    memory: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def passes(self) -> float | None:
        """Over the training text; None where it is streamed."""
        return None if self.sequences is None else self.steps * self.batch / self.sequences

    def said_time(self) -> str:
        """Return the time of the whole run in words."""
        hours = (self.seconds or 0.0) / 3600
        return f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.1f} min"

    def render(self) -> str:
        """Return the plan as text."""
        tokens = self.steps * self.batch * self.length
        seen = "streamed" if self.passes is None else f"{self.passes:.2f} passes over {self.sequences:,} sequences"
        lines = [
            f"{self.weights:,} weights are trained, {self.blocks:,} of them in blocks",
            f"{self.steps:,} steps of {self.batch} x {self.length} tokens: {tokens:,} tokens, {seen}; judged on "
            f"{self.held:,} others",
            *self.notes,
        ]
        if self.seconds is not None and self.memory is not None:
            lines.append(
                f"About {self.said_time()} on this machine without the evaluations, {self.memory / 2**20:,.0f} MB"
            )
        return "\n".join(lines)


def planned(
    prepared: Prepared, seconds: float | None = None, memory: int | None = None, notes: tuple[str, ...] = ()
) -> PretrainingPlan:
    """Return the plan of what was prepared; ``seconds`` are those of a step, ``notes`` what acts on layers."""
    recipe = prepared.recipe
    return PretrainingPlan(
        *prepared.weights,
        prepared.steps,
        recipe.batch,
        recipe.length,
        None if isinstance(prepared.text, Streamed) else len(prepared.text),
        len(prepared.held),
        None if seconds is None else seconds * prepared.steps,
        memory,
        notes,
    )
