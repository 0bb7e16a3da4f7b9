"""Unlearning: gradient ascent on what is to be forgotten, descent on what is to be kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lowdim.core.errors import RecipeError
from lowdim.core.lazy import Lazy, torch
from lowdim.core.settings import count, within
from lowdim.data import tokens
from lowdim.data.facts.fact import Fact
from lowdim.data.facts.read import overlap, read
from lowdim.pipeline.compose.stage import MASK, Stage, Work

if TYPE_CHECKING:
    from torch import Tensor

    from lowdim.models.disk import rewrite
    from lowdim.models.disk.source import Source
    from lowdim.pipeline.compose import recall, tune
else:
    rewrite = Lazy("lowdim.models.disk.rewrite")
    recall, tune = Lazy("lowdim.pipeline.compose.recall"), Lazy("lowdim.pipeline.compose.tune")

_SLACK = 0.05  # nats that a token of what must stay may have lost, on average, when training ends


@dataclass(frozen=True)
class Unlearn(Stage):
    """Make the model forget facts: gradient difference.

    min over w of weight * mean_retain L - mean_forget min(L, bound), L = -log p(target | prompt) per token; the bound
    ends the ascent, which has no end of its own. Training ends once every fact to forget is at the bound, and what must
    stay is as likely as before. Paper: "Continual Learning and Private Unlearning", arXiv 2203.12817.

    Args:
        forget: a file of JSON lines with prompt and target, or ``builtin:forget``.
        retain: the same of what must stay, or ``builtin:retain``.
        weight: of the facts that must stay.
        bound: loss of a token, nats, at which a fact counts as forgotten.
        include: globs on the names of the weights that are trained; none means every linear layer of the blocks.
        distance: the most that a weight may move; null for no bound.
        lr: of Adam.
        steps: at most so many.
        masked: whether zeros stay zero while it trains.

    Example:
        >>> Unlearn.of({"bound": 6.0}).weight
        1.0
    """

    forget: str = "builtin:forget"
    retain: str = "builtin:retain"
    weight: float = within(1.0, least=0)
    bound: float = within(5.0, above=0)
    include: tuple[str, ...] = ()
    distance: float | None = within(None, above=0)
    lr: float = within(5e-5, above=0)
    steps: int = count(40)
    masked: bool = True

    breaks: ClassVar[frozenset[str]] = frozenset()
    ends: ClassVar[bool] = True

    def facts(self) -> Mapping[str, Sequence[Fact]]:
        """What is to go and what is to stay.

        Raises:
            RecipeError: a fact is in both.
        """
        forget, retain = read(self.forget), read(self.retain)
        if both := overlap(forget, retain):
            raise RecipeError(
                f"unlearn.forget and unlearn.retain share {len(both)} of their prompts, first {both[0].prompt!r}: a "
                "fact cannot go and stay. Take it out of one of them."
            )
        return {"forget": forget, "retain": retain}

    def ahead(self, source: Source) -> float:
        """From the time of a forward, three of them a step, and all the steps."""
        tune.trainable(source, self.include)
        return self.steps * tune.seconds_of_step(source, sum(map(len, self.facts().values())))

    def run(self, work: Work) -> dict[str, Any]:
        """Train in memory and write the weights that moved."""
        sets = self.facts()
        forget, retain = sets["forget"], sets["retain"]
        tuner = tune.Tuner(work.source, self.include, self.distance, self.masked and MASK in work.held, work.device)
        pairs = {name: [recall.ids_of(work.tokenizer, fact) for fact in facts] for name, facts in sets.items()}
        total = len(forget) + len(retain)
        signs = {"forget": -total / len(forget), "retain": self.weight * total / len(retain)}
        weighed = [(ids, signs[name]) for name in ("forget", "retain") for ids in pairs[name]]
        count, before = len(forget), list[float]()

        def done(_: float, each: Tensor) -> bool:
            """Tell whether all is forgotten, and what must stay is about as likely as it was."""
            kept = float(each[count:].mean())
            before.append(kept)
            return bool((each[:count] >= self.bound).all()) and kept <= before[0] + _SLACK

        losses = tuner.train(
            tune.chunks(weighed, tokens.pad_id(work.tokenizer)),
            self._loss,
            done,
            lr=self.lr,
            steps=self.steps,
            title="Unlearn",
            progress=work.progress,
        )
        changed = tuner.changed()
        rewrite.rewrite(work.source, work.out, changed, overwrite=True)
        return {
            "forget": len(forget),
            "retain": len(retain),
            "steps": max(0, len(losses) - 1),
            "loss": [losses[0], losses[-1]],
            "forgotten": recall.share(self._forgotten(tuner, work, pairs["forget"])),
            "retained_loss": [before[0], before[-1]],
            "matrices": len(changed),
        }

    def _loss(self, each: Tensor, chunk: tune.Chunk) -> Tensor:
        """Return the mean over a chunk; what is to be forgotten has a negative sign, and counts up to the bound."""
        signs = chunk.signs.to(each.device)
        return (signs * torch.where(signs < 0, each.clamp(max=self.bound), each)).mean()

    def _forgotten(self, tuner: tune.Tuner, work: Work, pairs: list[recall.Ids]) -> list[bool]:
        """Tell of each fact whether it is at the bound, and greedy decoding does not give it."""
        told = recall.judged(tuner.model, work.tokenizer, pairs)
        return [-found.value / len(said) >= self.bound and not found.greedy for found, (_, said) in told]
