"""Runs on tiny models: tokens, recipes, saved checkpoints, and what to ask of a result."""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path
from typing import Any

import torch
from tests.models.zoo import VOCAB, ZOO
from torch import Tensor
from transformers import PreTrainedModel

from lowdim.models.disk.checkpoint import Checkpoint
from lowdim.models.load import quiet
from lowdim.prune.api import PruneResult, prune
from lowdim.prune.recipe import Recipe

SAMPLES, CONTEXT = 6, 16


def tokens(samples: int = SAMPLES, context: int = CONTEXT, seed: int = 0) -> Tensor:
    return torch.randint(1, VOCAB, (samples, context), generator=torch.Generator().manual_seed(seed))


def padded(samples: int = SAMPLES, context: int = CONTEXT, fill: int = 0) -> list[dict[str, Tensor]]:
    """Samples of which the second and the fourth are short, padded on the left."""
    ids, mask = tokens(samples, context), torch.ones(samples, context, dtype=torch.int64)
    mask[1, :5], mask[3, :1] = 0, 0
    return [{"input_ids": torch.where(mask.bool(), ids, fill), "attention_mask": mask}]


def recipe(**settings: Any) -> Recipe:
    """Return a recipe without evaluation, in fp32, for `tokens()`; 60% unless told otherwise."""
    pattern = settings.get("pattern")
    nm = isinstance(pattern, str) and ":" in pattern
    base: dict[str, Any] = {} if nm else {"sparsity": 0.6}
    calibration = {"samples": SAMPLES} | settings.pop("calibration", {})
    return Recipe(**base | {"evaluation": {"text": None}, "compute": "float32"} | settings, calibration=calibration)


def model(kind: str = "llama", dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    return ZOO[kind]().to(dtype)


def save(path: Path, kind: str = "llama", dtype: torch.dtype = torch.float32) -> Path:
    return save_model(model(kind, dtype), path)


def save_model(made: PreTrainedModel, path: Path) -> Path:
    with quiet():
        made.save_pretrained(path)
    return path


def in_memory(made: PreTrainedModel, made_recipe: Recipe, data: Any = None) -> PruneResult:
    """Prune a copy of a model and return the result, which holds the copy."""
    return prune(copy.deepcopy(made), made_recipe, calibration=tokens() if data is None else data)


def weights(result: PruneResult) -> dict[str, Tensor]:
    """Return the pruned layers' parameters of a result in memory."""
    assert result.model is not None
    return {name: result.model.get_parameter(name).detach() for name in result.masks}


@torch.no_grad()
def logits(made: PreTrainedModel) -> Tensor:
    out: Tensor = made(input_ids=tokens()).logits
    return out


def stored(path: Path) -> dict[str, Tensor]:
    checkpoint = Checkpoint(path)
    return {name: checkpoint.read(name) for name in checkpoint.names()}


def digest(path: Path) -> dict[str, str]:
    """Return the hash of every file under a directory."""
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }
