"""What a target accepts of a draft, on every text of a recipe."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from lowdim.core.progress import Stage
from lowdim.evaluate.quality.acceptance import Reader, block_efficiency, expected, speculate
from lowdim.train.draft.prepare import Prepared


def measure(prepared: Prepared, target: PreTrainedModel, draft: PreTrainedModel, stage: Stage) -> dict[str, Any]:
    """Return, by text: the expected acceptance on the text itself, and what a simulated decoding did.

    ``acceptance`` is the mean of sum_v min(p_v, q_v) over the text's tokens, ``agreement`` that of equal likeliest
    tokens. ``simulated`` counts a speculative decoding of the target's own text, verified by rejection sampling, and
    ``predicted`` is the block efficiency that the formula gives for its acceptance.
    """
    settings, seed = prepared.recipe.acceptance, prepared.recipe.seed
    one, other = Reader(target), Reader(draft, words=prepared.words)
    found: dict[str, Any] = {}
    for name, sample in prepared.samples.items():
        told = expected(one, other, sample.batches(prepared.words))
        row: dict[str, Any] = {"acceptance": told.acceptance, "agreement": told.agreement, "tokens": told.tokens}
        if settings.tokens:
            done = speculate(one, other, sample.prompts, settings.tokens, settings.drafted, seed)
            row["simulated"] = {
                "acceptance": done.acceptance,
                "efficiency": done.efficiency,
                "predicted": block_efficiency(done.acceptance, settings.drafted),
                "proposed": done.proposed,
                "calls": done.calls,
                "tokens": done.tokens,
            }
        found[name] = row
        stage.advance()
    return found
