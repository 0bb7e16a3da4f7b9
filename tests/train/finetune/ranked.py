"""What the ranks of a fine-tuning do: started by `torch.multiprocessing`, they write what they saw to files."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

from tests.train.finetune.small import recipe
from tests.train.gloo import joined

from lowdim.train.finetune.api import finetune

KINDS: dict[str, dict[str, Any]] = {
    "lift": {},
    "dora": {"method": "dora"},
    "todo": {"objective": "todo"},
    "dpo-full": {"objective": "dpo", "method": "full"},
}


def settings(kind: str, home: Path) -> Any:
    data = home / ("pairs.jsonl" if "objective" in KINDS[kind] else "chats.jsonl")
    return recipe(home / "pruned", data, "steps=3", "accumulate=2", "batch=8", **KINDS[kind])


def main(rank: int, size: int, home: str) -> None:
    os.environ["LOWDIM_CACHE"] = f"{home}/cache"
    place, found = Path(home), {}
    with joined(rank, size, home), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of ties that are left out
        for kind in KINDS:
            made = finetune(settings(kind, place.parent), out=place / kind)
            found[kind] = {"curve": made.facts["curve"], "validation": made.facts["validation"]}
    (place / f"{rank}.json").write_text(json.dumps(found))
