"""Which combinations of a large test run by day."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest


def turns(*lists: Sequence[Any], of: int) -> list[Any]:
    """Return all combinations as parameters; every n-th along the diagonals by day, the others marked nightly.

    Each value of each list has its turn where the other lists have ``of`` combinations or more.
    """
    return [
        pytest.param(
            *(each for _, each in chosen), marks=() if sum(i for i, _ in chosen) % of == 0 else pytest.mark.nightly
        )
        for chosen in product(*(list(enumerate(each)) for each in lists))
    ]
