"""A sweep of one slow run, to be killed: ``python -m tests.pipeline.sweep.killed DIR``."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.pipeline.sweep.made import COMMAND, PROGRAM

from lowdim.pipeline.sweep import execute
from lowdim.pipeline.sweep.api import Sweep
from lowdim.pipeline.sweep.recipe import SweepRecipe


def main() -> None:
    execute.PROGRAM = PROGRAM
    recipe = SweepRecipe(command="fake", grid={"--seed": [0, 1], "mode": ["ok", "slow"]})
    Sweep(recipe, COMMAND, Path(sys.argv[1])).run(announce=print)


if __name__ == "__main__":
    main()
