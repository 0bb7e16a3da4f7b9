"""Editing: facts taught by a few steps of training close to the weights that there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from lowdim.core.errors import LowdimError
from lowdim.core.lazy import Lazy
from lowdim.core.settings import Range, count, share, within
from lowdim.data import tokens
from lowdim.data.facts.fact import Fact
from lowdim.data.facts.read import read
from lowdim.pipeline.compose.stage import MASK, Stage, Work

if TYPE_CHECKING:
    from lowdim.models.disk import rewrite
    from lowdim.models.disk.source import Source
    from lowdim.pipeline.compose import recall, tune
else:
    rewrite = Lazy("lowdim.models.disk.rewrite")
    recall, tune = Lazy("lowdim.pipeline.compose.recall"), Lazy("lowdim.pipeline.compose.tune")


@dataclass(frozen=True)
class Edit(Stage):
    """Teach facts by fine-tuning on them, each weight at most ``distance`` from where it was.

    min over w of the mean -log p(target | prompt), |w - w0|_inf <= distance, by Adam and a projection after each step,
    all facts in every step, until the loss is ``enough``. Facts that the model says already are counted and left out.
    Paper: "Modifying Memories in Transformer Models", arXiv 2012.00363.

    Args:
        edits: a file of JSON lines with prompt, target, paraphrases and locality, or ``builtin:edits``.
        include: globs on the names of the weights that are trained; none means every linear layer of the blocks.
        distance: the most that a weight may move; null for no bound.
        lr: of Adam.
        steps: at most so many.
        enough: mean loss of a target token, nats, at which training stops.
        masked: whether zeros stay zero while it trains; without it they fill, and the composition sets them again.
        locality: least share of the tokens after the locality prompts that are to be the same as before the edit,
            below which the stage is refused; null only says how many are.

    Example:
        >>> Edit.of({"steps": 5}).distance
        0.001
    """

    edits: str = "builtin:edits"
    include: tuple[str, ...] = ()
    distance: float | None = field(default=1e-3, metadata={"range": Range(above=0, optional=True)})
    lr: float = within(5e-5, above=0)
    steps: int = count(40)
    enough: float = within(0.1, least=0)
    masked: bool = True
    locality: float | None = share(None)

    breaks: ClassVar[frozenset[str]] = frozenset()
    ends: ClassVar[bool] = True

    def facts(self) -> Mapping[str, Sequence[Fact]]:
        """The facts to teach."""
        return {"edits": read(self.edits)}

    def ahead(self, source: Source) -> float:
        """From the time of a forward, three of them a step, and all the steps."""
        tune.trainable(source, self.include)
        return self.steps * tune.seconds_of_step(source, len(read(self.edits)))

    def run(self, work: Work) -> dict[str, Any]:
        """Train in memory and write the weights that moved."""
        facts = read(self.edits)
        tuner = tune.Tuner(work.source, self.include, self.distance, self.masked and MASK in work.held, work.device)
        model, tokenizer = tuner.model, work.tokenizer
        there = recall.known(model, tokenizer, [fact.pair for fact in facts])
        new = [fact for fact, told in zip(facts, there, strict=True) if not told]
        if any(there):
            work.announce(f"{sum(there)} of {len(facts)} edits are known to the model already, and are not trained on.")
        words = recall.token_by_token(recall.own_words(model, tokenizer, recall.prompts_of(facts)))
        losses: list[float] = []
        if new:
            batches = tune.chunks([(recall.ids_of(tokenizer, fact), 1.0) for fact in new], tokens.pad_id(tokenizer))
            losses = tuner.train(
                batches,
                lambda each, _: each.mean(),
                lambda loss, _: loss <= self.enough,
                lr=self.lr,
                steps=self.steps,
                title="Edit",
                progress=work.progress,
            )
        kept = recall.share(recall.same(model, tokenizer, words))
        if self.locality is not None and kept is not None and kept < self.locality:
            raise LowdimError(
                f"the edit leaves {kept:.2f} of what follows the locality prompts as it was, less than edit.locality="
                f"{self.locality:g}. Lower edit.distance or edit.lr, name fewer weights in edit.include, or lower "
                "edit.locality."
            )
        changed = tuner.changed() if new else {}
        rewrite.rewrite(work.source, work.out, changed, overwrite=True)
        return {
            "facts": len(facts),
            "known": sum(there),
            "steps": max(0, len(losses) - 1),
            "loss": [losses[0], losses[-1]] if losses else [],
            "said": recall.share(recall.known(model, tokenizer, [fact.pair for fact in facts])),
            "locality": kept,
            "matrices": len(changed),
        }
