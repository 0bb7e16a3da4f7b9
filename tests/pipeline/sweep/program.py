"""Stands for ``lowdim``: ``python program.py COMMAND --out=DIR [--resume] mode seed`` behaves as the mode says.

ok: writes what it reports. slow: the same, after a minute unless it is resumed. fail, diverge, infinite: end badly.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from lowdim.pipeline.sweep.child import die_with_parent


def main() -> None:
    die_with_parent()
    words = sys.argv[1:]
    out = next(Path(word.removeprefix("--out=")) for word in words if word.startswith("--out="))
    values = dict(word.split("=", 1) for word in words if "=" in word)
    mode, seed = values.get("mode", "ok"), float(values.get("--seed", 0))
    print("called", *words, "threads", os.environ.get("OMP_NUM_THREADS", ""), flush=True)
    partial = out.with_name("out.partial")
    partial.mkdir(parents=True, exist_ok=True)
    if mode == "slow" and "--resume" not in words:
        time.sleep(60)
    if mode == "fail":
        print("Error: it broke. Mend it.", file=sys.stderr)
        sys.exit(1)
    if mode == "diverge":
        print("Error: the loss of step 7 is NaN, the norm of the gradient 1e9.", file=sys.stderr)
        sys.exit(1)
    score = 10 + seed
    loss = {"loss": float("inf")} if mode == "infinite" else {"spread": float("nan")}
    facts = {
        "lowdim": "0",
        "score": score,
        "test": loss,
        "same": 3,
        "recipe": {"lr": 5},
        "layers": {"a": {"score": seed}},
    }
    (partial / "facts.json").write_text(json.dumps(facts))
    (partial / "config.json").write_text(json.dumps({"hidden": seed}))
    partial.rename(out)
    (out.parent / "out.run.json").write_text(json.dumps({"peak_bytes": 100 * seed}))


if __name__ == "__main__":
    main()
