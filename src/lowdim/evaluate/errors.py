"""What can be wrong with an evaluation."""

from __future__ import annotations

from lowdim.core.errors import LowdimError


class EvaluationError(LowdimError):
    """Results that cannot be compared, tasks that do not exist, or a missing evaluation package."""
