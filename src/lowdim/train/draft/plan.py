"""The plan of a training of drafts: what is trained, for how long, and how much memory that takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class DraftPlan:
    """What a run will do.

    Attributes:
        target: weights of the target.
        draft: weights of a draft.
        words: over how many words they are compared.
        steps: of every training, by its name.
        seconds: of one step of each.
        tokens: of a step.
        sequences: that the training text holds.
        samples: sequences that are measured on, by the name of their text.
        memory: bytes that the process has held by the time that a step of each was timed.
    """

    target: int
    draft: int
    words: int
    steps: Mapping[str, int]
    seconds: Mapping[str, float]
    tokens: int
    sequences: int
    samples: Mapping[str, int]
    memory: int

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return asdict(self)

    def render(self) -> str:
        """Return the plan as text."""
        lines = [f"Target of {self.target:,} weights, draft of {self.draft:,}, compared over {self.words:,} words"]
        total = 0.0
        for name, steps in self.steps.items():
            took = steps * self.seconds[name]
            total += took
            lines.append(f"{name}: {steps:,} steps of {self.tokens:,} tokens, {_time(took)}")
        texts = ", ".join(f"{count} of {name}" for name, count in self.samples.items())
        lines.append(f"Text of {self.sequences:,} sequences; measured on {texts} sequences")
        lines.append(f"About {_time(total)} on this machine without measuring, {self.memory / 2**20:,.0f} MB")
        return "\n".join(lines)


def _time(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"
