"""Stages in one order, from disk to disk: after each the model is read back, and what must hold is verified."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from lowdim.core.errors import LowdimError
from lowdim.models.disk import manifest
from lowdim.models.disk.manifest import Manifest
from lowdim.models.disk.masks import masks_in
from lowdim.models.disk.rewrite import rewrite
from lowdim.models.disk.source import Source, resolve
from lowdim.pipeline.compose import invariants
from lowdim.pipeline.compose.stage import Stage, Work

Durable = Callable[[str, Callable[[], Any]], Any]


@dataclass(frozen=True)
class Chain:
    """One order of stages.

    Attributes:
        name: of the order, and of the directory that its result appears in.
        stages: in their order.
        place: the directory of the run.
        keep: whether what each stage made stays there.
        refuse: whether what a stage breaks ends the run, instead of being put right.
        ranks: of the model that is given, see `lowdim.pipeline.compose.invariants.ranks_of`.
    """

    name: str
    stages: Sequence[Stage]
    place: Path
    keep: bool
    refuse: bool
    ranks: Mapping[str, int]

    def check(self, held: frozenset[str]) -> None:
        """Refuse stages that destroy what holds before them, before any work.

        Raises:
            RecipeError: see `Stage.check`.
        """
        for stage in self.stages:
            stage.check(held)
            held = stage.after(held)

    @property
    def out(self) -> Path:
        """Where the result appears."""
        return self.place / self.name

    def run(
        self, first: Work, durable: Durable, measure: Callable[[Source], Any], announce: Callable[[str], None]
    ) -> list[dict[str, Any]]:
        """Run what is not finished; return what is to be said of each stage.

        Args:
            first: what the first stage is given; where it writes is said here.
            durable: (key, make) -> what was made under the key, by this attempt or an earlier one.
            measure: what is measured of the model after each stage.
            announce: told of what was broken.

        Raises:
            LowdimError: a stage fails, or breaks what must hold where that is to be refused.
        """
        work, ranks, told, before = first, self.ranks, list[dict[str, Any]](), ""
        for number, stage in enumerate(self.stages, start=1):
            key = f"{self.name}.{number}-{stage.word()}"
            made = self.place / key
            work = replace(work, out=made)
            record = durable(key, partial(self._stage, key, stage, work, dict(ranks), durable, measure, announce))
            told.append(record)
            ranks = invariants.lower(ranks, record["facts"].get("ranks", {}))
            last = _read(made, work) if made.exists() else work.source
            if before and not self.keep:
                _remove(self.place / before)  # by its name here: what the first stage was given is the user's
            before = key
            work = replace(work, source=last, held=stage.after(work.held))
        durable(f"{self.name}.out", lambda: self._settle(work.source, before))
        return told

    def _stage(
        self,
        key: str,
        stage: Stage,
        work: Work,
        ranks: Mapping[str, int],
        durable: Durable,
        measure: Callable[[Source], Any],
        announce: Callable[[str], None],
    ) -> dict[str, Any]:
        """Make, verify, put right and measure; each step is durable, and one that was killed is done again."""
        facts = durable(f"{key}.facts", partial(stage.run, work))
        _end_replacement(work.out)
        held = invariants.read(work.source, work.held - stage.renews(), ranks)
        found: list[Mapping[str, Any]] = []

        def verified() -> list[dict[str, Any]]:
            breaches, right = invariants.verify(_read(work.out, work), held)
            found.append(right)
            return [asdict(breach) | {"sentence": breach.sentence()} for breach in breaches]

        broken = durable(f"{key}.broken", verified)
        if broken and self.refuse:
            said = "; ".join(breach["sentence"] for breach in broken)
            raise LowdimError(
                f"{stage.word()} broke what the stages before it promised: {said}. Let it be put right (verify: "
                "impose), or give the stage settings that keep it."
            )
        for breach in broken:
            announce(f"After {stage.word()} {breach['sentence']}: put right.")
        if not found:
            verified()  # an earlier attempt may have been killed before it was put right
        if found[0]:
            self._replace(work, found[0])
        made = _read(work.out, work)
        if manifest.exists(made.path):
            masks_in(made.path)  # refuses weights that are not those of their record
        own = invariants.lower(ranks, facts.get("ranks", {}))
        return {
            "stage": stage.word(),
            "settings": stage.described(),
            "facts": facts,
            "broken": broken,
            "holds": invariants.read(made, stage.after(work.held), own).record(),
            "measures": measure(made),
        }

    def _replace(self, work: Work, right: Mapping[str, Any]) -> None:
        """Let the model with what was put right stand in the place of the one that was broken."""
        rewrite(_read(work.out, work), _mended(work.out), right, overwrite=True)
        shutil.rmtree(work.out)
        _end_replacement(work.out)

    def _settle(self, source: Source, last: str) -> bool:
        """Let the result appear under the order's name."""
        if not self.out.exists():
            if not last or self.keep:
                rewrite(source, self.out, {}, overwrite=True)
            else:
                (self.place / last).rename(self.out)
        if last and not self.keep:
            _remove(self.place / last)
        return True


def record_origin(out: Path, original: Manifest, told: Sequence[Mapping[str, Any]]) -> None:
    """Write into ``lowdim.json`` which model all stages began with, and what they did to it."""
    found = manifest.read(out)
    found.model = original.model
    own = [{key: each[key] for key in ("stage", "settings", "facts", "broken")} for each in told]
    found.interventions = [*(original.interventions or []), *own]
    (out / manifest.FILE).write_text(manifest.to_text(found), encoding="utf-8")


def _read(made: Path, work: Work) -> Source:
    return resolve(str(made), trust_remote_code=work.source.trusted)


def _mended(out: Path) -> Path:
    return out.with_name(f"{out.name}.mended")


def _end_replacement(out: Path) -> None:
    """Let what was put right take its place, where the broken one is gone already."""
    if not out.exists():
        _mended(out).rename(out)
    shutil.rmtree(_mended(out), ignore_errors=True)


def _remove(place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)
    place.with_name(f"{place.name}.run.json").unlink(missing_ok=True)
