"""Rows of `sparse_quality.py` that are more than one run: ensembles, superposed and pooled tickets, channels.

A row is a function of a task and a seed that returns what it measured, by name; it trains on the task's data,
chooses on its validation images and quotes test accuracies.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from quality_chase import chase, vgg
from quality_tasks import Task
from quality_tickets import TICKETS

Run = Callable[[Task, int], dict[str, Any]]

EXTRA: dict[str, tuple[str, Run]] = {"chase": ("conv", chase), "chase-vgg": ("conv", vgg)}
EXTRA |= TICKETS
