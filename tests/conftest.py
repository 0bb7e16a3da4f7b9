"""What all tests share."""

from __future__ import annotations

import gc
import os

from hypothesis import settings

# How long an example takes says nothing on a machine that is doing other work.
settings.register_profile("house", deadline=None)
settings.load_profile("house")

# Sparse layers lie in memory in one form, not in that which happens to be fastest here: times do not decide over tests.
os.environ.setdefault("LOWDIM_FORM", "packed")

# Collecting makes two million objects that stay: to look through them again and again took a tenth of the time.
gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()
