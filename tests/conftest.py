"""What all tests share."""

from __future__ import annotations

import os

from hypothesis import settings

# How long an example takes says nothing on a machine that is doing other work.
settings.register_profile("house", deadline=None)
settings.load_profile("house")

# Sparse layers lie in memory in one form, not in that which happens to be fastest here: times do not decide over tests.
os.environ.setdefault("LOWDIM_FORM", "packed")
