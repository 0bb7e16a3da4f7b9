"""Check a result against its own record, in a process that has nothing from the run in it."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from lowdim.models.disk.checks import Check, run_checks
from lowdim.models.disk.shard import read_header, read_tensor, write_file


@dataclass(frozen=True)
class VerifyReport:
    """All checks of a directory, in the order they were made."""

    path: str
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return all(check.passed is not False for check in self.checks)


def verify(
    path: str | Path, text_tokens: Tensor | None = None, measure: str | None = None, trust_remote_code: bool = False
) -> VerifyReport:
    """Check files, weights, masks, generation and perplexity of a result in a new process.

    Args:
        path: a directory with a ``lowdim.json``.
        text_tokens: int64 ``[samples, context]``, the text of the recorded perplexity; without it that check
            is left out.
        measure: ``"module:function"``, called as ``function(model, text_tokens, protocol)`` for a perplexity;
            by default every sample counts alone, from its second token on.
        trust_remote_code: run the modelling code that the checkpoint brings along.
    """
    with tempfile.TemporaryDirectory(prefix="lowdim-verify-") as scratch:
        report, tokens = Path(scratch, "report.json"), Path(scratch, "tokens.safetensors")
        command = [sys.executable, "-m", "lowdim.models.disk.verify", str(path), "--report", str(report)]
        if text_tokens is not None:
            with tokens.open("wb") as file:
                write_file(file, {"tokens": text_tokens.to(torch.int64)}, {})
            command += ["--tokens", str(tokens)]
        command += ["--measure", measure] if measure else []
        command += ["--trust-remote-code"] if trust_remote_code else []
        done = subprocess.run(command, env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True)
        if not report.exists():
            tail = (done.stderr.strip().splitlines() or ["no message"])[-1]
            crash = Check("process", False, f"the checking process died (exit code {done.returncode}): {tail}")
            return VerifyReport(str(path), (crash,))
        return VerifyReport(str(path), tuple(Check(**check) for check in json.loads(report.read_text())))


def main(arguments: Sequence[str] | None = None) -> None:
    """Make every check and write the outcome as JSON: the command behind `verify`."""
    parser = argparse.ArgumentParser(prog="python -m lowdim.models.disk.verify")
    parser.add_argument("path", type=Path)
    parser.add_argument("--report", type=Path, required=True)
    parser.add_argument("--tokens", type=Path)
    parser.add_argument("--measure")
    parser.add_argument("--trust-remote-code", action="store_true")
    given = parser.parse_args(None if arguments is None else list(arguments))
    tokens = read_tensor(read_header(given.tokens).tensors["tokens"]) if given.tokens else None
    checks = run_checks(given.path, tokens, given.measure, given.trust_remote_code)
    given.report.write_text(json.dumps([asdict(check) for check in checks]))


if __name__ == "__main__":
    main()
