"""A made-up command and the program that stands for it."""

from __future__ import annotations

import sys
from pathlib import Path

from lowdim.pipeline.sweep.command import Command

PROGRAM = (sys.executable, str(Path(__file__).with_name("program.py")))
COMMAND = Command("fake", out="--out", again="--resume", switches={"--fast": ("--fast", "--slow")}, sets=True)
