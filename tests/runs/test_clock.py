"""What a run says of its memory is its own."""

from __future__ import annotations

import subprocess
import sys

from lowdim.runs.clock import peak_memory

SAYS = "from lowdim.runs.clock import peak_memory; print(peak_memory())"
STARTS = f"import subprocess, sys; held = b'x' * (300 << 20); subprocess.run([sys.executable, '-c', {SAYS!r}])"


def run(program: str) -> int:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_what_started_a_process_is_no_part_of_its_peak() -> None:
    alone, started = run(SAYS), run(STARTS)
    assert abs(started - alone) < 50 << 20


def test_the_peak_stays_when_memory_is_freed() -> None:
    before = peak_memory()
    held = bytearray(b"x") * (before + (64 << 20))
    assert peak_memory() >= len(held)
    del held
    assert peak_memory() >= before + (64 << 20)
