"""The audits by their settings, without the weight of what they run on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lowdim.core.settings import Settings, count, share
from lowdim.data.tokens import Bos
from lowdim.evaluate.audit import GRID, Difficulty

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from lowdim.core.progress import Progress
    from lowdim.evaluate.audit.essential import Essential, Metric
    from lowdim.evaluate.audit.junkdna import JunkDNA


@dataclass(frozen=True)
class EssentialSparsityAudit(Settings):
    """Up to what sparsity a score holds when the smallest weights of the whole model fall at once, untrained.

    Args:
        grid: sparsities in [0, 1); 0 is added.
        tau: the relative loss that is tolerated.
        random: measure the control too: as many weights at random.
        seed: draws the control.

    Paper: "The Emergence of Essential Sparsity in Large Pre-trained Models: The Weights that Matter", arXiv 2306.03805.
    """

    grid: tuple[float, ...] = GRID
    tau: float = share(0.01)
    random: bool = True
    seed: int = count(0, least=0)

    def measure(self, model: PreTrainedModel, metric: Metric, progress: Progress | None = None) -> Essential:
        """Return what `lowdim.evaluate.audit.essential.essential_sparsity` finds."""
        from lowdim.evaluate.audit.essential import essential_sparsity

        return essential_sparsity(model, metric, **vars(self), progress=progress)


@dataclass(frozen=True)
class JunkDNAAudit(Settings):
    """Whether small weights matter more for difficult tasks.

    Args:
        difficulty: how hard each task is: "gap", "options" or a number per task.
        grid: sparsities in [0, 1); 0 is added.
        tau: the drop that is tolerated, in accuracy.
        limit: at most so many questions a task.
        seed: which questions a limit draws.
        bos: where the start-of-text token goes.

    Paper: "Pruning Small Pre-Trained Weights Irreversibly and Monotonically Impairs 'Difficult' Downstream Tasks in
    LLMs", arXiv 2310.02277.
    """

    difficulty: Difficulty = "gap"
    grid: tuple[float, ...] = GRID
    tau: float = share(0.01)
    limit: int | None = count(None)
    seed: int = count(0, least=0)
    bos: Bos = "tokenizer"

    def measure(
        self, model: PreTrainedModel, tokenizer: Any, tasks: list[str], progress: Progress | None = None
    ) -> JunkDNA:
        """Return what `lowdim.evaluate.audit.junkdna.junk_dna` finds."""
        from lowdim.evaluate.audit.junkdna import junk_dna

        return junk_dna(model, tokenizer, tasks, **vars(self), progress=progress)
