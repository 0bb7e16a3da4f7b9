from __future__ import annotations

from itertools import pairwise

import pytest

from lowdim.core.errors import LowdimError
from lowdim.train.tickets.freetickets import FreeTickets
from lowdim.train.tickets.suptickets import SupTickets


def test_after_the_end_the_last_phase_and_rate_hold():
    plan = FreeTickets().plan(450)
    assert plan.phase(10_000).name == "refine 2"
    assert plan.lr_factor(10_000) == 0.01
    with pytest.raises(LowdimError, match="counts from 0; got -1"):
        plan.phase(-1)


def test_phases_cover_the_run_without_gaps():
    for plan in (
        FreeTickets(tickets=7, explore=0.37).plan(1001),
        SupTickets(share=0.33, cycle=3).plan(101, 7),
    ):
        assert plan.phases[0].start == plan.rate[0].start == 0
        for pieces in (plan.phases, plan.rate):
            assert all(a.end == b.start for a, b in pairwise(pieces))
        assert plan.phases[-1].end == plan.rate[-1].end
