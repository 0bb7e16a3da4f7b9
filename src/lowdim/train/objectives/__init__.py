"""What a network is trained for."""

from __future__ import annotations

from lowdim.core.registry import register

_HERE = "lowdim.train.objectives"
register("objective", "erm", f"{_HERE}.erm:ERM", title="Cross entropy, every sample alike")
register(
    "objective",
    "group-weights",
    f"{_HERE}.group_weights:GroupWeights",
    title="An Investigation of Why Overparameterization Exacerbates Spurious Correlations",
    arxiv="2005.04345",
    year=2020,
)
register(
    "objective",
    "group-dro",
    f"{_HERE}.group_dro:GroupDRO",
    title="Distributionally Robust Neural Networks for Group Shifts: On the Importance of Regularization for "
    "Worst-Case Generalization",
    arxiv="1911.08731",
    year=2020,
)
register(
    "objective",
    "jtt",
    f"{_HERE}.jtt:JTT",
    title="Just Train Twice: Improving Group Robustness without Training Group Information",
    arxiv="2107.09044",
    year=2021,
)
register(
    "objective",
    "rest",
    f"{_HERE}.rest:REST",
    title="REST: Enhancing Group Robustness in DNNs through Reweighted Sparse Training",
    arxiv="2312.03044",
    year=2023,
)
register(
    "objective",
    "adversarial",
    f"{_HERE}.adversarial:Adversarial",
    title="Towards Deep Learning Models Resistant to Adversarial Attacks",
    arxiv="1706.06083",
    year=2018,
    aliases=("pgd",),
)
register(
    "objective",
    "sebra",
    f"{_HERE}.sebra:SebraContrast",
    title="Sebra: Debiasing through Self-Guided Bias Ranking",
    arxiv="2501.18277",
    year=2025,
)
