"""All that a run needs before it trains: target, draft, text and what is measured on, checked against each other."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from lowdim.core.errors import LowdimError, RecipeError
from lowdim.data.calibration import positions
from lowdim.data.corpus import cache
from lowdim.data.corpus.split import Corpus
from lowdim.models.disk.checkpoint import Checkpoint
from lowdim.models.disk.source import Source, resolve
from lowdim.models.load import need_tokenizer, read_placed
from lowdim.runs.fingerprint import versions
from lowdim.train.draft.networks import Start, check_vocabularies, refuse_beside, start_of
from lowdim.train.draft.recipe import Drafting
from lowdim.train.draft.texts import Sample, samples
from lowdim.train.pretrain.sequences import Sequences


@dataclass(frozen=True, eq=False)
class Prepared:
    """What a run begins with.

    Attributes:
        recipe: of the run.
        target: where the target is.
        start: what drafts begin as.
        tokenizer: of the target.
        words: over how many words the networks are compared.
        text: to train on.
        samples: to measure on, by name.
        steps: of every draft.
        device: where it is computed.
        facts: of the text, see `lowdim.data.corpus.cache.Tokenised`.
    """

    recipe: Drafting
    target: Source
    start: Start
    tokenizer: Any
    words: int
    text: Sequences
    samples: dict[str, Sample]
    steps: int
    device: torch.device
    facts: dict[str, Any]

    def fingerprint(self) -> dict[str, Any]:
        """Return all that decides the output's bytes."""
        return {
            "recipe": self.recipe.to_dict(),
            "target": Checkpoint(self.target.path).fingerprint(),
            "draft": self.start.fingerprint(),
            "data": self.facts["hash"],
            "samples": {name: sample.digest() for name, sample in self.samples.items()},
            "versions": versions(),
        }


def prepare(recipe: Drafting, advance: Callable[[int], None] = lambda _: None) -> Prepared:
    """Read the configs, find or make the tokens, and check that everything fits together.

    Raises:
        LowdimError: it does not; or a model, a tokenizer or a text cannot be read.
    """
    if recipe.device == "cuda" and not torch.cuda.is_available():
        raise RecipeError("device 'cuda' was asked for, and torch finds no GPU. Choose device: auto or cpu.")
    target = resolve(recipe.target, trust_remote_code=recipe.trust_remote_code)
    config = read_placed(target.path, recipe.trust_remote_code)[0]
    tokenizer = need_tokenizer(target.spec, target.path, recipe.trust_remote_code)
    if recipe.tune.steps:
        refuse_beside(target, "tuned target")
    start = start_of(recipe, target, config, tokenizer)
    words, note = check_vocabularies(start, config, tokenizer)
    _check_length(recipe, config, "target")
    _check_length(recipe, start.config, "draft")
    data = recipe.data
    split = Corpus(data.source, data.validation, data.separator).split()
    tokens = cache.tokenised(split, tokenizer, data.kind, advance)
    packed = data.kind == "text"
    text = Sequences(tokens.train, recipe.length, packed)
    held = Sequences(tokens.validation, recipe.length, packed, whole=True)
    largest = max(int(part.ids.max()) for part in (tokens.train, tokens.validation))
    if largest >= words:
        raise LowdimError(
            f"the text has token {largest}, {tokenizer.convert_ids_to_tokens(largest)!r}, and the draft knows "
            f"{words:,} tokens. Take a draft with all tokens of the target, or text without it."
        )
    if note:
        warnings.warn(note, stacklevel=3)
    steps = recipe.steps or max(1, len(text) // recipe.batch)
    for each in (steps, recipe.tune.steps, recipe.reference.steps):
        if each:
            recipe.schedule.check(each)
    on_gpu = recipe.device == "cuda" or (recipe.device == "auto" and torch.cuda.is_available())
    device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
    found = samples(recipe, tokenizer, held, words)
    return Prepared(recipe, target, start, tokenizer, words, text, found, steps, device, tokens.facts)


def _check_length(recipe: Drafting, config: Any, what: str) -> None:
    most, measured = positions(config), recipe.acceptance
    simulated = measured.prompt + measured.tokens + 2 * measured.drafted if measured.tokens else 0
    if most is not None and (longest := max(recipe.length, simulated)) > most:
        name = "length" if longest == recipe.length else "acceptance.prompt and .tokens"
        raise RecipeError(f"{name} need {longest} positions, and the {what} has {most}. Take fewer.")
