"""What the graph of a mask looks like: distances, spectra, paths."""

from __future__ import annotations

from lowdim.core.registry import register

_HERE = "lowdim.evaluate.probe"
register(
    "probe",
    "nnstd",
    f"{_HERE}.distance:NNSTD",
    title="Topological Insights into Sparse Neural Networks",
    arxiv="2006.14085",
    year=2020,
)
register(
    "probe",
    "ramanujan",
    f"{_HERE}.ramanujan:Ramanujan",
    title="Revisiting Pruning at Initialization Through the Lens of Ramanujan Graph",
    year=2023,
    page="https://openreview.net/forum?id=uVcDssQff_",
)
register(
    "probe",
    "full-spectrum",
    f"{_HERE}.full_spectrum:FullSpectrum",
    title="A reading of Don't just prune by magnitude! Your mask topology is a secret weapon",
    year=2023,
    page="https://papers.nips.cc/paper_files/paper/2023/hash/cd5404354496e39d37b7947d8a0d7b72-Abstract-Conference.html",
)
register("probe", "paths", f"{_HERE}.paths:EffectivePaths", title="Effective paths, nodes and weights")
register(
    "probe",
    "dormant",
    "lowdim.evaluate.probe.dormant:Dormant",
    title="The Dormant Neuron Phenomenon in Deep Reinforcement Learning",
    arxiv="2302.12902",
    year=2023,
)
register(
    "probe",
    "cost",
    "lowdim.evaluate.cost.cost:Cost",
    title="FLOPs and memory over a schedule",
    arxiv="1911.11134",
    year=2020,
)
