"""Sparse, low-rank, cheap neural networks, measured on your own machine.

Importing lowdim is cheap: each name that ``__init__.pyi`` lists is loaded, and torch with it, when it is first used.
"""

from __future__ import annotations

from typing import Any

from lowdim.core import registry
from lowdim.core.lazy import attach

registry.kind("score", "Scores", "lowdim.core.score")
registry.kind("allocation", "Allocations", "lowdim.core.allocation")
registry.kind("pattern", "Patterns", "lowdim.core.pattern")
registry.kind("repair", "Repairs", "lowdim.prune.repair")
registry.kind("refine", "Refinements", "lowdim.prune.refine")
registry.kind("calibration", "Calibration formats", "lowdim.data.formats")
registry.kind("training", "Sparse training", "lowdim.train.dynamic")
registry.kind("objective", "What is trained for", "lowdim.train.objectives")
registry.kind("sampler", "Samples of an epoch", "lowdim.train.samplers")
registry.kind("placement", "Where norms stand", "lowdim.nn.placement")
registry.kind("masks", "Masks while a pruned model recovers", "lowdim.train.nm")
registry.kind("decay", "Decay of weights", "lowdim.train.riders")
registry.kind("from-scratch", "2:4 training from scratch", "lowdim.train.nm")
registry.kind("optimizer", "Optimizers", "lowdim.train.optimizers")
registry.kind("preference", "Losses of preferences", "lowdim.train.preference")
registry.kind("sampling", "Blocks that train at a time", "lowdim.train.riders")
registry.kind("drafter", "What a draft model is trained for", "lowdim.train.drafters")
registry.kind("rank", "Ranks of factorised layers", "lowdim.train.lowrank")
registry.kind("selector", "Which samples", "lowdim.train.selection")
registry.kind("initialisation", "Masks before training", "lowdim.train.initial")
registry.kind("estimator", "Estimators", "lowdim.train.estimators")
registry.kind("merger", "Many networks made one", "lowdim.merge", "lowdim.train.tickets")
registry.kind("probe", "Probes", "lowdim.evaluate.probe")
registry.kind("audit", "Audits", "lowdim.evaluate.audit")
registry.kind("stage", "Stages of a composition", "lowdim.pipeline.compose")

_load, __dir__, __all__ = attach(__name__)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("lowdim")
    return _load(name)
