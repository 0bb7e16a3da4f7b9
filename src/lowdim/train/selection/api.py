"""Rank samples by how spurious they are, and say whether there is a sign of a bias."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lowdim.core.errors import RecipeError, suggest
from lowdim.core.machine import machine
from lowdim.core.progress import Progress, Silent
from lowdim.core.recipe.families import build, describe
from lowdim.data.classification import Dataset
from lowdim.data.errors import DataError
from lowdim.data.labelled.open import open_source
from lowdim.data.labelled.settings import SIZE
from lowdim.data.labelled.source import Columns, Source
from lowdim.data.select.ranks import Ranks, samples_hash
from lowdim.models.encoders.encode import ENCODERS, Headed, features
from lowdim.models.small import nets
from lowdim.runs import sidecar
from lowdim.runs.clock import peak_memory
from lowdim.runs.directory import Directory, check_idle
from lowdim.train.compare.store import Store
from lowdim.train.selection.base import Ranking, TrainedSelector
from lowdim.train.selection.shown import shown
from lowdim.train.selection.sign import Sign, sign_of_bias

STATE, SHOWN = "ranking.safetensors", "shown.json"
ENCODER_SIZE = 128
RATES = {"mlp": 1e-4, "conv": 3e-4, "text": 1e-3, "head": 1e-3, "encoder": 5e-5}
"""Learning rates by what is trained: small networks, the head of a frozen encoder, a whole encoder."""


@dataclass(frozen=True, eq=False)
class Ranked:
    """What a ranking found.

    Attributes:
        ranks: of the samples.
        sign: what the test for a bias says.
        data: the samples, in the order of the ranks, for training with them.
        shown: samples to look at, as `lowdim.train.selection.shown.shown` returns them, and what both ends are called.
        run: times, memory, the machine.
        out: the directory, if one was asked for.
    """

    ranks: Ranks
    sign: Sign
    data: Dataset
    shown: Mapping[str, Any]
    run: Mapping[str, Any]
    out: Path | None = None


def rank(
    data: Any,
    *,
    out: str | Path | None = None,
    net: Any = "auto",
    tune: bool = False,
    method: Any = "sebra",
    columns: Columns | None = None,
    size: int | None = None,
    skip_unreadable: bool = False,
    limit: int | None = None,
    validation: float | None = None,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Ranked:
    """Rank samples within their class, the most spurious first.

    Args:
        data: a built-in name, a folder with a folder of pictures for each class, a CSV or JSON lines file of texts with
            their classes, or a data set object of Hugging Face.
        out: a directory that must not exist; it gets ``ranks.csv``, ``ranks.safetensors``, ``ranks.json`` and the
            samples to look at. Without it nothing is written and nothing can be resumed.
        net: what is trained: a small network ("mlp", "conv", "text", or a mapping with its settings), or the encoder
            "minilm" of texts or "efficientnet-lite0" of pictures; "auto" is "text" for texts and else "mlp".
        tune: train the encoder as well; else an MLP on its features.
        method: the selector: a name, a mapping with a name and settings, or the object.
        columns: of a table or data set object.
        size: pixels along a side of pictures of your own; 64, which training reads as well, or 128 for an encoder that
            ranks all samples, without ``validation``.
        skip_unreadable: leave out pictures that cannot be read.
        limit: samples at most.
        validation: share that is set aside beside a test part, as training does, which then takes the ranks and, in
            Python, ``Ranked.data``; None takes 0.1 of a built-in set, and ranks all samples of others.
        settings: of a built-in set that takes some.
        seed: of the weights, of the order of the samples, and of the cut.
        resume: go on where a killed run stopped, at the end of its last epoch.
        overwrite: replace an existing output, at the end.
        progress: told of every epoch.

    Raises:
        RecipeError: a setting is out of range, or the network does not take this kind of data.
        DataError: the samples cannot be read or ranked; says why.
        ResumeError: the unfinished run was another.
        OutputError: the output exists or cannot be written.
    """
    check_idle(out, resume, overwrite)
    _check(net, tune, method)
    progress = progress or Silent()
    begun = time.perf_counter()
    chosen: dict[str, Any] = {"columns": columns, "skip": skip_unreadable, "limit": limit, "validation": validation}
    usual = ENCODER_SIZE if net in list(ENCODERS) and validation is None else SIZE

    def read() -> Source:
        return open_source(data, size=size, usual=usual, seed=seed, settings=settings, **chosen)

    if out is None:
        job = _Job(read(), net, tune, method, seed, progress)
        return job.finished(job.trained(None), begun, None)
    with Directory(out, overwrite, resume) as directory:
        job = _Job(read(), net, tune, method, seed, progress)
        directory.begin(job.fingerprint)
        store = Store(directory)
        try:
            found = job.finished(job.trained(store), begun, None)
        except DataError:  # there are no ranks to go on to
            directory.reset()
            raise
        found.ranks.write(directory, net=job.net, skipped=list(job.source.skipped), name=job.source.name)
        directory.write_json(SHOWN, found.shown)
        store.drop(STATE)
        path = directory.finish()
    sidecar.write_sidecar(path, found.run)
    return Ranked(found.ranks, found.sign, found.data, found.shown, found.run, path)


def _check(net: Any, tune: bool, method: Any) -> None:
    """Refuse what is wrong whatever the data is."""
    build("selector", method)
    encodes = isinstance(net, str) and net in ENCODERS
    if tune and not encodes:
        raise RecipeError(f"tune trains an encoder as well, and net {net!r} is none. Choose {' or '.join(ENCODERS)}.")
    if isinstance(net, str) and net != "auto" and not encodes and net not in nets.NETS:
        raise RecipeError(f"unknown net {net!r}. {suggest(net, [*nets.NETS, *ENCODERS])}")
    if not isinstance(net, str):
        nets.parse(net)


class _Job:
    """Samples, and the network and selector that rank them."""

    def __init__(self, source: Source, net: Any, tune: bool, method: Any, seed: int, progress: Progress) -> None:
        self.source, self.seed, self.progress = source, seed, progress
        self.model, self.data, self.net = self._network(net, tune)
        rate = RATES["head" if self.net.get("frozen") else self.net["name"]] if not tune else RATES["encoder"]
        if isinstance(method, str | Mapping):
            given = {"name": method} if isinstance(method, str) else dict(method)
            method = {"lr": rate} | given if build("selector", given).rated else given
        self.method: TrainedSelector = build("selector", method)
        self.ranking: Ranking = self.method.begin(
            self.model, self.data, seed=seed
        )  # refuses samples that it cannot rank
        self.samples = source.dataset()
        self.hash = samples_hash(self.samples)  # not of what an encoder makes of them: training starts from samples
        described = describe("selector", self.method)
        self.fingerprint = {"method": described, "net": self.net, "seed": seed, "samples": self.hash}

    def _network(self, net: Any, tune: bool) -> tuple[nn.Module, Dataset, dict[str, Any]]:
        source = self.source
        encoder = ENCODERS.get(net) if isinstance(net, str) else None
        if encoder is None:
            data = source.dataset()
            small = nets.parse(nets.USUAL[source.kind] if net == "auto" else net)
            if source.kind not in small.kinds:
                fits = [name for name, each in nets.NETS.items() if source.kind in each.kinds]
                fits += [name for name, each in ENCODERS.items() if each.kind == source.kind]
                raise RecipeError(
                    f"net {small.name!r} does not take {source.kind} data, as {source.name!r} is. Choose one of: "  # type: ignore[attr-defined]
                    f"{', '.join(fits)}."
                )
            return small.build(data, self.seed), data, small.model_dump(mode="json")
        if encoder.kind != source.kind:
            raise RecipeError(f"net {net!r} encodes {encoder.kind} data, and {source.name!r} is {source.kind} data.")
        network, x = encoder.network(), encoder.inputs(source)
        if tune:
            data = source.of(x, source.kind)
            return Headed(network, network.width, len(source.classes), self.seed), data, {"name": net, "frozen": False}
        with self.progress.stage("Encode", len(x), "samples") as stage:
            data = source.of(features(network, x, stage.advance), "table")
        return nets.parse("mlp").build(data, self.seed), data, {"name": net, "frozen": True}

    def trained(self, store: Store | None) -> Ranking:
        """Return the finished ranking, gone on with from where an earlier attempt left it."""
        ranking = self.ranking
        begun = store.get(STATE) if store else None
        if begun is not None:
            ranking.load_state_dict(begun)
        with self.progress.stage("Rank", self.method.epochs, "epochs at most") as stage:
            stage.advance(ranking.epoch)
            while not ranking.ended:
                ranking.train_epoch()
                if store and not ranking.ended:
                    store.put(STATE, ranking.state_dict())
                stage.advance()
        return ranking

    def finished(self, ranking: Ranking, begun: float, out: Path | None) -> Ranked:
        """Return what was found."""
        ranks = replace(ranking.ranks(self.source.names), data=self.hash)
        margin = ranks.values.get("margin", torch.zeros(0))
        sign = sign_of_bias(margin, self.seed)
        ranks.facts["sign"] = sign.to_dict()  # type: ignore[index]
        run = {
            "seconds": round(time.perf_counter() - begun, 3),
            "peak_bytes": peak_memory(),
            "machine": machine(),
            "command": sidecar.command(),
        }
        look = {"ends": list(self.method.ends)} | shown(self.source, ranks)
        return Ranked(ranks, sign, self.samples, look, run, out)
