"""How long a front will take, and how much room it needs, said before it begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lowdim.data.windows import Windows
from lowdim.models.walk.opened import Opened
from lowdim.pipeline.ahead import asked_tokens, minutes, seconds_per_token
from lowdim.pipeline.front import peers
from lowdim.pipeline.front.forms import FORMS, Form
from lowdim.pipeline.front.make import sparse_recipe
from lowdim.pipeline.front.settings import Settings
from lowdim.prune import api as pruning


@dataclass(frozen=True)
class FrontPlan:
    """What a front costs.

    Attributes:
        measuring: seconds of all forms' perplexity and tasks, from forwards timed just now.
        pruning: seconds of the forward passes of all one-shot prunings.
        training: seconds of all trainings.
        forms: that are made and measured.
        foreign: of which llama.cpp runs.
        file_bytes: about what their files take.
    """

    measuring: float
    pruning: float
    training: float
    forms: int
    foreign: int
    file_bytes: int

    def render(self) -> str:
        """Return the plan as text.

        Example:
            >>> print(FrontPlan(120, 120, 600, 4, 1, 10**9).render())
            4 forms, about 14 min on this machine and 1.0 GB of disk:
              pruning: 2 min of forward passes, and what refitting the weights takes
              training: 10 min
              measuring: 2 min of perplexity and tasks, and at most a minute of decoding each
              llama.cpp runs 1 of them, and its quantizer takes its time for each
        """
        whole = self.measuring + self.pruning + self.training
        theirs = f"\n  llama.cpp runs {self.foreign} of them, and its quantizer takes its time for each"
        return (
            f"{self.forms} forms, about {minutes(whole)} on this machine and {self.file_bytes / 1e9:.1f} GB of disk:\n"
            f"  pruning: {minutes(self.pruning)} of forward passes, and what refitting the weights takes\n"
            f"  training: {minutes(self.training)}\n"
            f"  measuring: {minutes(self.measuring)} of perplexity and tasks, and at most a minute of decoding each"
            f"{theirs if self.foreign else ''}"
        )


def make_plan(
    base: Opened, path: str, settings: Settings, forms: Sequence[Form], tokenizer: Any, text: Windows, room: int
) -> FrontPlan:
    """Return the plan of some forms, none of them made yet; those that llama.cpp cannot run here take nothing.

    ``room``: tokens that a sequence in llama.cpp may hold.
    """
    assert base.checkpoint is not None
    weights = sum(base.checkpoint.info(name).numel for name in base.checkpoint.names())
    tokens = text.input_ids.numel() + asked_tokens(settings.tasks, tokenizer, settings.limit, settings.seed)
    made, own = to_prune(forms), sum(form.made for form in forms)
    peer = peers.seconds_per_token(settings, room, text.input_ids[:1]) if own < len(forms) else None
    foreign = 0 if peer is None else len(forms) - own
    return FrontPlan(
        measuring=tokens * (own * seconds_per_token(base, text.input_ids[:1]) + foreign * (peer or 0)),
        pruning=sum(pruning.plan(path, sparse_recipe(form, settings)).seconds for form in made),
        training=60 * settings.each * sum(form.trained for form in forms),
        forms=own + foreign,
        foreign=foreign,
        file_bytes=sum(form.bytes_of(weights) for form in {*made, *forms} if form.made or foreign),
    )


def to_prune(forms: Sequence[Form]) -> list[Form]:
    """Return the one-shot forms that are pruned: those asked for, and those that recovery begins with.

    Example:
        >>> [form.name for form in to_prune([FORMS["sparse-50-int8-recovered"]])]
        ['sparse-50-bf16']
    """
    sparse = [form for form in forms if form.sort == "sparse"]
    return list(dict.fromkeys(FORMS[f"sparse-{form.pattern}-bf16"] if form.trained else form for form in sparse))
