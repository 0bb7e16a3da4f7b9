"""Prune with lowdim: run by `prune.py`, one process per measurement."""

import argparse
import json
import time

import torch

from lowdim.prune.api import prune
from lowdim.prune.recipe import Recipe


def main() -> None:
    """Prune from disk to disk; print the seconds as JSON on the last line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("tokens")
    parser.add_argument("out")
    parser.add_argument("--method", required=True)
    parser.add_argument("--sparsity", type=float, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--set", action="append", default=[], dest="settings")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    flags = {"sparsity": given.sparsity, "method": given.method}
    settings = ["evaluation.text=null", *given.settings]
    recipe = Recipe.assemble(None, flags, settings)
    begun = time.perf_counter()
    prune(given.model, recipe, calibration=given.tokens, out=given.out, overwrite=True)
    print(json.dumps({"total": time.perf_counter() - begun}))


if __name__ == "__main__":
    main()
