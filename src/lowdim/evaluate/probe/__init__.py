"""What the graph of a mask looks like: distances, spectra, paths."""

from __future__ import annotations

from lowdim.core.registry import register

_HERE = "lowdim.evaluate.probe"
register("probe", "nnstd", f"{_HERE}.distance:NNSTD", title="Topology distance", arxiv="2006.14085", year=2020)
register("probe", "ramanujan", f"{_HERE}.ramanujan:Ramanujan", title="Ramanujan gap, IMDB and NaRC")
register("probe", "full-spectrum", f"{_HERE}.full_spectrum:FullSpectrum", title="Full-spectrum coordinate")
register("probe", "paths", f"{_HERE}.paths:EffectivePaths", title="Effective paths, nodes and weights")
register(
    "probe",
    "dormant",
    "lowdim.evaluate.probe.dormant:Dormant",
    title="Dormant neurons",
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
