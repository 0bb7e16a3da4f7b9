"""Repair: what happens to the weights that a mask keeps."""

from lowdim.core.registry import register

register("repair", "none", "lowdim.prune.repair.none:NoRepair", title="Kept weights stay as they are")
register(
    "repair",
    "sparsegpt",
    "lowdim.prune.repair.sparsegpt:SparseGPT",
    title="SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot",
    arxiv="2301.00774",
    year=2023,
)
register(
    "repair",
    "refit",
    "lowdim.prune.repair.refit:Refit",
    title="Least-squares refit of the kept weights on a given mask",
)
