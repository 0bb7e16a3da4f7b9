"""`lowdim compose`: interventions on a trained model in a row, what each promises, and whether it survives the next."""

from __future__ import annotations

from lowdim.core.registry import register

_HERE = "lowdim.pipeline.compose.stages"
register("stage", "prune", f"{_HERE}.prune:Prune", title="Pruning, as lowdim prune does it")
register("stage", "round", f"{_HERE}.round:Round", title="Rounding to 8, 4 or 3 bits, as lowdim convert does it")
register("stage", "recover", f"{_HERE}.recover:Recover", title="Recovery, as lowdim recover does it")
register(
    "stage", "factorise", f"{_HERE}.factorise:Factorise", title="Matrices of low rank, the best in the Frobenius norm"
)
register(
    "stage",
    "edit",
    f"{_HERE}.edit:Edit",
    title="Modifying Memories in Transformer Models",
    arxiv="2012.00363",
    year=2020,
)
register(
    "stage",
    "unlearn",
    f"{_HERE}.unlearn:Unlearn",
    title="Continual Learning and Private Unlearning",
    arxiv="2203.12817",
    year=2022,
)
