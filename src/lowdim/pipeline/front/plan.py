"""How long a front will take, and how much room it needs, said before it begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lowdim.data.windows import Windows
from lowdim.models.walk.opened import Opened
from lowdim.pipeline.ahead import asked_tokens, minutes, seconds_per_token
from lowdim.pipeline.front.forms import FORMS, Form
from lowdim.pipeline.front.make import sparse_recipe
from lowdim.pipeline.front.settings import Settings
from lowdim.prune import api as pruning


@dataclass(frozen=True)
class FrontPlan:
    """What a front costs.

    Attributes:
        measuring: seconds of one form's perplexity and tasks, from a forward timed just now.
        pruning: seconds of the forward passes of all one-shot prunings.
        training: seconds of all trainings.
        forms: that are made and measured.
        file_bytes: about what their files take.
    """

    measuring: float
    pruning: float
    training: float
    forms: int
    file_bytes: int

    def render(self) -> str:
        """Return the plan as text.

        Example:
            >>> print(FrontPlan(30, 120, 600, 4, 10**9).render())
            4 forms, about 14 min on this machine and 1.0 GB of disk:
              pruning: 2 min of forward passes, and what refitting the weights takes
              training: 10 min
              measuring: 2 min of perplexity and tasks, and at most a minute of decoding each
        """
        measuring = self.measuring * self.forms
        whole = measuring + self.pruning + self.training
        return (
            f"{self.forms} forms, about {minutes(whole)} on this machine and {self.file_bytes / 1e9:.1f} GB of disk:\n"
            f"  pruning: {minutes(self.pruning)} of forward passes, and what refitting the weights takes\n"
            f"  training: {minutes(self.training)}\n"
            f"  measuring: {minutes(measuring)} of perplexity and tasks, and at most a minute of decoding each"
        )


def make_plan(
    base: Opened, path: str, settings: Settings, forms: Sequence[Form], tokenizer: Any, text: Windows
) -> FrontPlan:
    """Return the plan of some forms: none of them is made yet."""
    assert base.checkpoint is not None
    weights = sum(base.checkpoint.info(name).numel for name in base.checkpoint.names())
    tokens = text.input_ids.numel() + asked_tokens(settings.tasks, tokenizer, settings.limit, settings.seed)
    made = to_prune(forms)
    return FrontPlan(
        measuring=tokens * seconds_per_token(base, text.input_ids[:1]),
        pruning=sum(pruning.plan(path, sparse_recipe(form, settings)).seconds for form in made),
        training=60 * settings.each * sum(form.trained for form in forms),
        forms=len(forms),
        file_bytes=sum(form.bytes_of(weights) for form in {*made, *forms} if form.name != "dense-bf16"),
    )


def to_prune(forms: Sequence[Form]) -> list[Form]:
    """Return the one-shot forms that are pruned: those asked for, and those that recovery begins with.

    Example:
        >>> [form.name for form in to_prune([FORMS["sparse-50-int8-recovered"]])]
        ['sparse-50-bf16']
    """
    sparse = [form for form in forms if form.sort == "sparse"]
    return list(dict.fromkeys(FORMS[f"sparse-{form.pattern}-bf16"] if form.trained else form for form in sparse))
