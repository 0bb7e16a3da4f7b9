"""Stages in one order, from disk to disk: after each the model is read back, and what must hold is verified."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from lowdim.core.errors import LowdimError
from lowdim.core.files import read_json, replace_json
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
    """

    name: str
    stages: Sequence[Stage]
    place: Path
    keep: bool
    refuse: bool

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
        work, ranks, told, before = first, dict[str, int](), list[dict[str, Any]](), ""
        for number, stage in enumerate(self.stages, start=1):
            key = f"{self.name}.{number}-{stage.word()}"
            made = self.place / key
            work = replace(work, out=made)
            record = durable(key, partial(self._stage, stage, work, dict(ranks), measure, announce))
            told.append(record)
            ranks |= record["facts"].get("ranks", {})
            last = resolve(str(made)) if made.exists() else work.source
            if before and not self.keep:
                _remove(self.place / before)  # by its name here: what the first stage was given is the user's
            before = key
            work = replace(work, source=last, held=stage.after(work.held))
        durable(f"{self.name}.out", lambda: self._settle(work.source, before))
        return told

    def _stage(
        self,
        stage: Stage,
        work: Work,
        ranks: Mapping[str, int],
        measure: Callable[[Source], Any],
        announce: Callable[[str], None],
    ) -> dict[str, Any]:
        facts = {}
        note = work.out.with_name(f"{work.out.name}.facts.json")
        if not work.out.exists():  # a directory that exists is complete
            facts = stage.run(work)
            replace_json(note, facts)
        facts = facts or (read_json(note) if note.exists() else {})
        must = work.held - stage.renews()
        held = invariants.read(work.source, must, ranks)
        breaches, right = invariants.verify(resolve(str(work.out)), held)
        if breaches and self.refuse:
            said = "; ".join(breach.sentence() for breach in breaches)
            raise LowdimError(
                f"{stage.word()} broke what the stages before it promised: {said}. Let it be put right (verify: "
                "impose), or give the stage settings that keep it."
            )
        for breach in breaches:
            announce(f"After {stage.word()} {breach.sentence()}: put right.")
        if right:
            self._replace(work.out, right)
        found = resolve(str(work.out))
        if manifest.exists(found.path):
            masks_in(found.path)  # refuses weights that are not those of their record
        after = stage.after(work.held)
        own = dict(ranks) | (facts.get("ranks") or {})
        note.unlink(missing_ok=True)
        return {
            "stage": stage.word(),
            "settings": stage.described(),
            "facts": facts,
            "broken": [breach.__dict__ | {"sentence": breach.sentence()} for breach in breaches],
            "holds": invariants.read(found, after, own).record(),
            "measures": measure(found),
        }

    def _replace(self, out: Path, right: Mapping[str, Any]) -> None:
        """Let the model with what was put right stand in the place of the one that was broken."""
        mended = out.with_name(f"{out.name}.mended")
        shutil.rmtree(mended, ignore_errors=True)
        rewrite(resolve(str(out)), mended, right, overwrite=True)
        shutil.rmtree(out)
        mended.rename(out)

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
    found.interventions = [{key: each[key] for key in ("stage", "settings", "facts", "broken")} for each in told]
    (out / manifest.FILE).write_text(manifest.to_text(found), encoding="utf-8")


def _remove(place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)
    place.with_name(f"{place.name}.run.json").unlink(missing_ok=True)
