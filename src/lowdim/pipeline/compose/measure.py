"""What is measured of every model of a composition, against the one that all of it began with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lowdim.core.progress import Progress
from lowdim.data.calibration import positions
from lowdim.data.facts.fact import Fact
from lowdim.data.windows import Windows
from lowdim.models.disk.checkpoint import Checkpoint
from lowdim.models.disk.source import Source
from lowdim.models.quantize import linear_weights
from lowdim.models.walk.opened import open_model
from lowdim.models.walk.stream import watched
from lowdim.pipeline.compose import recall
from lowdim.prune.measure import measure
from lowdim.prune.recipe import Recipe
from lowdim.prune.sidecar import weight_bytes


@dataclass(frozen=True)
class Asked:
    """What every model is asked.

    Attributes:
        recipe: text, windows and tasks, as evaluations read them.
        tokenizer: of the model.
        text: windows for perplexity; ``None`` for none.
        edits: facts that are taught in the composition.
        forget: facts that are to go.
        retain: facts that are to stay.
        progress: told of forwards.
    """

    recipe: Recipe
    tokenizer: Any
    text: Windows | None
    edits: Sequence[Fact]
    forget: Sequence[Fact]
    retain: Sequence[Fact]
    progress: Progress

    def first(self, source: Source) -> dict[str, Any]:
        """Measure the model that all of it begins with: what it knows, and its own words after the locality prompts."""
        forward, config = self._forward(source)
        prompts = recall.prompts_of(self.edits)
        return {
            "edits": self._known(forward, self.edits),
            "forget": self._known(forward, self.forget),
            "retain": self._known(forward, self.retain),
            "reworded": self._pairs(forward, _rephrased(self.forget)),
            "words": recall.own_words(forward, self.tokenizer, prompts) if prompts else [],
            **self._plain(source, forward, config),
        }

    def again(self, source: Source, first: Mapping[str, Any]) -> dict[str, float | None]:
        """Measure a later model; shares are of what the first one knew, or said."""
        forward, config = self._forward(source)
        reworded = [pair for pair, told in zip(_rephrased(self.forget), first["reworded"], strict=True) if told]
        words = recall.token_by_token([(list(before), list(said)) for before, said in first["words"]])
        gone = [not told for told in self._still(forward, self.forget, first["forget"])]
        plain = self._plain(source, forward, config)
        return {
            "success": recall.share(self._known(forward, self.edits)),
            "rephrase": recall.share(self._pairs(forward, _rephrased(self.edits))),
            "locality": recall.share(recall.same(forward, self.tokenizer, words)) if words else None,
            "forgotten": recall.share(gone),
            "reworded": recall.share([not told for told in self._pairs(forward, reworded)]),
            "retained": recall.share(self._still(forward, self.retain, first["retain"])),
            "perplexity": plain["perplexity"],
            **{f"task:{name}": value for name, value in plain["tasks"].items()},
            "zeros": plain["zeros"],
            "megabytes": plain["megabytes"],
        }

    def _forward(self, source: Source) -> tuple[Any, Any]:
        opened = open_model(str(source.path), compute=self.recipe.compute, trust_remote_code=source.trusted)
        return watched(opened.stream.forward, len(opened.stream), "Measure", self.progress), opened.config

    def _known(self, forward: Any, facts: Sequence[Fact]) -> list[bool]:
        return self._pairs(forward, [fact.pair for fact in facts])

    def _pairs(self, forward: Any, pairs: Sequence[tuple[str, str]]) -> list[bool]:
        return recall.known(forward, self.tokenizer, pairs) if pairs else []

    def _still(self, forward: Any, facts: Sequence[Fact], knew: Sequence[bool]) -> list[bool]:
        return self._known(forward, [fact for fact, told in zip(facts, knew, strict=True) if told])

    def _plain(self, source: Source, forward: Any, config: Any) -> dict[str, Any]:
        found = measure(forward, self.recipe, self.tokenizer, self.text, positions(config))
        return {
            "perplexity": None if found.perplexity is None else found.perplexity.value,
            "protocol": {} if found.perplexity is None else found.perplexity.protocol,
            "tasks": {name: task.value for name, task in found.tasks.items()},
            "zeros": _zeros(source),
            "megabytes": weight_bytes(source.path) / 1e6,
        }


def _rephrased(facts: Sequence[Fact]) -> list[tuple[str, str]]:
    return [pair for fact in facts for pair in fact.rephrased]


def _zeros(source: Source) -> float:
    """Return the share of zeros over the linear layers of the blocks, counted in the weights."""
    checkpoint = Checkpoint(source.path)
    zeros = whole = 0
    for name in linear_weights(checkpoint, source.trusted):
        weight = checkpoint.read(name)
        zeros, whole = zeros + int((weight == 0).sum()), whole + weight.numel()
    return zeros / whole if whole else 0.0
