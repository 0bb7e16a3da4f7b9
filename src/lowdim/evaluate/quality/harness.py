"""A bridge to the Language Model Evaluation Harness, for the tasks and prompts of its own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lowdim.core.lazy import torch
from lowdim.evaluate.errors import EvaluationError


def run_harness(
    model: torch.nn.Module, tokenizer: Any, tasks: Iterable[str], *, batch_size: int = 8, **options: Any
) -> dict[str, dict[str, Any]]:
    """Evaluate a model in memory with the harness.

    Args:
        model: a Hugging Face causal LM; it is handed over as it is, not saved and loaded again.
        tokenizer: its tokenizer.
        tasks: task names of the harness, such as ``arc_easy``; their data sets are downloaded by the harness.
        batch_size: sequences in a forward pass.
        **options: further arguments of ``lm_eval.simple_evaluate``, such as ``limit`` or ``num_fewshot``.

    Returns:
        For each task the harness's metrics.

    Raises:
        EvaluationError: the harness is not installed.
    """
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "lm_eval":
            raise
        raise EvaluationError("the evaluation harness is not installed; run: pip install 'lowdim[eval]'") from error
    wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
    outcome = simple_evaluate(model=wrapped, tasks=list(tasks), **options)
    results: dict[str, dict[str, Any]] = outcome["results"]
    return results
