"""What all tests share."""

from __future__ import annotations

from hypothesis import settings

# How long an example takes says nothing on a machine that is doing other work.
settings.register_profile("house", deadline=None)
settings.load_profile("house")
