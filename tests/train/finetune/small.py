"""A small pruned model, chats and pairs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.train.pretrain import small

import lowdim
from lowdim.data.corpus import preferences
from lowdim.train.finetune.api import FinetuningResult, finetune
from lowdim.train.finetune.recipe import Finetuning

OWN = ["optimizer.budget=1", "optimizer.every=3"]
RANK = "optimizer.rank=2"


def prune(base: Path, out: Path, storage: str = "dense") -> Path:
    """Prune half of a small model by magnitude."""
    recipe = lowdim.Recipe(sparsity=0.5, method="magnitude", storage=storage, evaluation={"text": None})
    lowdim.prune(str(base), recipe, out=out)
    return out


def rows(home: Path) -> None:
    """Write chats, pairs with ties, pairs that do not say, and a pair of equal answers."""
    small.chats(home / "chats.jsonl", 40)
    pairs = list(preferences.records(preferences.synthetic(120)))
    silent = [{key: value for key, value in row.items() if key != "tie"} for row in pairs]
    equal = [{"prompt": "a", "chosen": "b", "rejected": "b "}]
    for name, found in (("pairs", pairs), ("silent", silent), ("equal", equal)):
        (home / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")


def recipe(model: Path, data: Path, *given: str, **flags: Any) -> Finetuning:
    """Return a recipe of six steps."""
    tiny = ["steps=6", "length=60", "batch=4", "device=cpu", "optimizer.lr=0.01", "data.template=plain"]
    method = flags.get("method", "lift")
    own = OWN if method in ("lift", "random", "magnitude", "smallest") else []
    own = [RANK, *own] if method in ("lift", "smallest") else own
    first = {"model": str(model), "data.source": str(data), "method": method}
    return Finetuning.laid_over({}, {**first, **flags}, [*tiny, *own, *given])


def run(model: Path, data: Path, out: Path, *given: str, **flags: Any) -> FinetuningResult:
    return finetune(recipe(model, data, *given, **flags), out=out)
