"""What all tests share."""

from __future__ import annotations

import functools
import gc
import os
import subprocess
from types import SimpleNamespace
from typing import Any

import pytest
import typer.testing
from hypothesis import settings

# How long an example takes says nothing on a machine that is doing other work.
settings.register_profile("house", deadline=None)
settings.load_profile("house")

# Sparse layers lie in memory in one form, not in that which happens to be fastest here: times do not decide over tests.
os.environ.setdefault("LOWDIM_FORM", "packed")

# To build the program's commands takes a quarter of a second, and they stay as they are.
typer.testing._get_command = functools.cache(typer.testing._get_command)

# Collecting makes two million objects that stay: to look through them again and again took a tenth of the time.
gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@pytest.fixture
def checked_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """`verify` looks in this process: one of its own, as in tests/models/disk/test_verify.py, takes seconds."""
    from lowdim.models.disk import verify

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        verify.main(command[3:])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(verify, "subprocess", SimpleNamespace(run=run))
