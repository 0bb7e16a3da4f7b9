"""Interventions on a model in a row: `compose`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lowdim.core.errors import CheckpointError, LowdimError, RecipeError
from lowdim.core.files import read_json
from lowdim.core.machine import machine
from lowdim.core.progress import Progress, Silent
from lowdim.data.facts.read import contradictions, overlap
from lowdim.evaluate.present import jsonable
from lowdim.models.disk import manifest
from lowdim.models.disk.checkpoint import Checkpoint
from lowdim.models.disk.rewrite import new_record
from lowdim.models.disk.source import Source, resolve
from lowdim.models.walk.opened import Opened, open_model, pick_device
from lowdim.pipeline.ahead import asked_tokens, minutes, seconds_per_token
from lowdim.pipeline.compose import invariants
from lowdim.pipeline.compose.chain import Chain, record_origin
from lowdim.pipeline.compose.measure import Asked
from lowdim.pipeline.compose.recipe import Composition, order_of
from lowdim.pipeline.compose.result import SCHEMA, sentence, table
from lowdim.pipeline.compose.stage import Work
from lowdim.prune.measure import measured_on, ready
from lowdim.runs.directory import Directory, partial_of
from lowdim.runs.fingerprint import refuse_differences, versions

FILE = "compose.json"
_SETS = ("edits", "forget", "retain")


def compose(
    model: str | Path,
    recipe: Composition | None = None,
    *,
    out: str | Path,
    keep: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
    announce: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Apply stages to a model one after another; verify after each what the ones before it promised, and measure.

    Args:
        model: a directory, hub id, GGUF file or ``builtin:`` name.
        recipe: the stages, and what is measured; none at all copies the model.
        out: directory to appear: ``compose.json``, the result in ``model/``, and that of the other order in
            ``reversed/``. Until all is done there is ``OUT.partial``, in which every finished stage is durable.
        keep: leave in ``out`` what each stage made; else one model is there at a time, beside the results.
        resume: go on from ``OUT.partial``; a finished composition of the same recipe is returned as it is.
        progress: told of stages and their advance.
        announce: given the plan as text before the work begins, and what a stage has broken.

    Returns:
        What is in ``compose.json``: the table of measures, and what each stage did, broke and left.

    Raises:
        LowdimError: anything that the caller can put right: the recipe, the facts, stages that cannot follow each
            other, a stage that breaks what must hold where that is refused.
    """
    recipe = recipe or Composition()
    return _Run(str(model), recipe, Path(out), keep, progress or Silent(), announce or (lambda _: None)).run(resume)


def plan(model: str | Path, recipe: Composition, *, out: str | Path, progress: Progress | None = None) -> str:
    """Return what `compose` would do and about how long each stage takes, timed on this machine; nothing is written.

    Raises:
        LowdimError: as `compose`.
    """
    run = _Run(str(model), recipe, Path(out), False, progress or Silent(), lambda _: None)
    return run.plan(run.open()[0])


class _Run:
    def __init__(
        self,
        model: str,
        recipe: Composition,
        out: Path,
        keep: bool,
        progress: Progress,
        announce: Callable[[str], None],
    ) -> None:
        self.model, self.recipe, self.out, self.keep = model, recipe, out, keep
        self.progress, self.announce = progress, announce

    def open(self) -> tuple[Opened, Mapping[str, list[Any]], frozenset[str], Any]:
        """Open the model and check all that is known before any work; return it, the facts, what holds, a tokenizer."""
        recipe = self.recipe
        facts = _facts(recipe)  # what is wrong with them is known before a model is opened
        trusted = recipe.trust_remote_code
        opened = open_model(self.model, compute=recipe.compute, device=recipe.device, trust_remote_code=trusted)
        assert opened.source is not None
        self.source = opened.source
        tokenizer = opened.tokenizer()
        if tokenizer is None:
            raise CheckpointError(
                f"{self.model} has no tokenizer beside its weights, so nothing can be asked of it. Copy them there."
            )
        self.ranks = invariants.ranks_of(self.source)
        held = invariants.kinds_of(self.source, self.ranks, trusted)
        self.chains = {name: self._chain(name, held) for name in recipe.chains()}
        text = ready(recipe.measuring(), tokenizer, opened.config)
        self.asked = Asked(recipe.measuring(), tokenizer, text, **facts, progress=self.progress)
        opened.check_weights()
        return opened, facts, held, tokenizer

    def run(self, resume: bool) -> dict[str, Any]:
        opened, facts, held, tokenizer = self.open()
        assert opened.checkpoint is not None
        fingerprint = {
            "recipe": self.recipe.to_dict(),
            "facts": {name: [(fact.prompt, fact.target) for fact in found] for name, found in facts.items()},
            "model": opened.checkpoint.fingerprint(),
            "evaluation": measured_on(self.recipe.measuring(), self.asked.text),
            "versions": versions(),
        }
        fingerprint = jsonable(fingerprint)
        if resume and (self.out / FILE).exists():
            found = read_json(self.out / FILE)
            refuse_differences(f"the finished composition in {self.out}", found["fingerprint"], fingerprint)
            return found
        with Directory(self.out, resume=resume) as directory:
            directory.begin(fingerprint)
            directory.require_space(self._space(opened.checkpoint))
            result = self._result(directory, opened, held, tokenizer)
            directory.write_json(FILE, jsonable(result | {"fingerprint": fingerprint}))
            directory.finish()
        return read_json(self.out / FILE)

    def _chain(self, name: str, held: frozenset[str]) -> Chain:
        place = partial_of(self.out)
        refuse = self.recipe.verify == "refuse"
        chain = Chain(name, self.recipe.chains()[name], place, self.keep, refuse, self.ranks)
        chain.check(held)
        return chain

    def _space(self, checkpoint: Checkpoint) -> int:
        """Return the bytes that are there at once: the results, what a stage is given and what it makes."""
        kept = sum(len(chain.stages) for chain in self.chains.values()) if self.keep else 2
        return (len(self.chains) + kept) * checkpoint.size_bytes

    def plan(self, opened: Opened) -> str:
        """Return what is done, and about how long it takes."""
        recipe, text = self.recipe, self.asked.text
        tokens = asked_tokens(recipe.evaluation.tasks, self.asked.tokenizer, recipe.evaluation.limit, recipe.seed)
        tokens += text.input_ids.numel() if text is not None else 0
        tokens += 16 * (3 * len(self.asked.edits) + len(self.asked.forget) + len(self.asked.retain))
        ids = self.asked.tokenizer("the " * 128, return_tensors="pt")["input_ids"][:, :64]
        models = 1 + sum(max(1, len(chain.stages)) for chain in self.chains.values())
        asking = models * tokens * seconds_per_token(opened, ids)
        stages = {repr(stage): stage for chain in self.chains.values() for stage in chain.stages}
        ahead = {said: stage.ahead(self.source) for said, stage in stages.items()}
        lines, whole = [], asking
        for chain in self.chains.values():
            own = [ahead[repr(stage)] for stage in chain.stages]
            whole += sum(own)
            timed = zip(chain.stages, own, strict=True)
            said = ", ".join(f"{s.word()} {'at most ' * s.ends}{minutes(t)}" for s, t in timed)
            lines.append(f"  {chain.name}: {said or 'no stage'}")
        lines.append(f"  measuring {models} models: {minutes(asking)}")
        most = "At most about" if any(s.ends for chain in self.chains.values() for s in chain.stages) else "About"
        return "\n".join([f"{most} {minutes(whole)} on this machine:", *lines])

    def _result(self, directory: Directory, opened: Opened, held: frozenset[str], tokenizer: Any) -> dict[str, Any]:
        recipe = self.recipe

        def durable(key: str, make: Callable[[], Any]) -> Any:
            done: dict[str, Any] = directory.state.setdefault("done", {})
            if key not in done:
                done[key] = jsonable(make())
                directory.save_state()
            return done[key]

        try:
            self.announce(durable("plan", lambda: self.plan(opened)))
        except LowdimError:
            directory.reset()  # nothing in it is worth going on from
            raise
        first: Mapping[str, Any] = durable("first", lambda: self.asked.first(self.source))
        if known := sum(first["edits"]):
            self.announce(f"{known} of {len(first['edits'])} edits are known to the model before any stage.")
        for name, what in (("forget", "forgotten"), ("retain", "retained")):
            if first[name] and not any(first[name]):
                self.announce(f"The model knows none of the facts of {name!r}, so what is {what} cannot be measured.")
        work = Work(
            source=self.source,
            out=directory.partial,
            original=self.model,
            held=held,
            tokenizer=tokenizer,
            seed=recipe.seed,
            device=str(pick_device(recipe.device)),
            compute=recipe.compute,
            progress=self.progress,
            announce=self.announce,
        )
        told = {
            name: chain.run(work, durable, lambda made: self.asked.again(made, first), self.announce)
            for name, chain in self.chains.items()
        }
        ends = {name: self._measured(name, stages, first, durable) for name, stages in told.items()}
        for name, stages in told.items():
            record_origin(self.chains[name].out, self._origin(self.source), stages)
        rows = table(first, ends)
        orders = {name: order_of(stages) for name, stages in recipe.chains().items()}
        return {
            "schema": SCHEMA,
            "lowdim": version("lowdim"),
            "model": self.model,
            "orders": orders,
            "sentence": sentence(rows, list(orders.values()) if self.recipe.stages else []),
            "table": rows,
            "stages": told,
            "first": {key: value for key, value in first.items() if key != "words"},
            "recipe": recipe.to_dict(),
            "protocol": first["protocol"],
            "machine": machine(),
        }

    def _measured(self, name: str, stages: list[dict[str, Any]], first: Mapping[str, Any], durable: Any) -> Any:
        """Return what was measured behind the last stage; without one, of the copy."""
        if stages:
            return stages[-1]["measures"]
        made = resolve(str(self.chains[name].out), trust_remote_code=self.recipe.trust_remote_code)
        return durable(f"{name}.measures", lambda: self.asked.again(made, first))

    def _origin(self, source: Source) -> manifest.Manifest:
        if manifest.exists(source.path):
            return manifest.read(source.path)
        return new_record(source, Checkpoint(source.path))


def _facts(recipe: Composition) -> dict[str, list[Any]]:
    """Return the facts of all stages, each once.

    Raises:
        RecipeError: stages together contradict each other: a fact is to go and to stay, or has two targets.
    """
    merged: dict[str, dict[Any, None]] = {name: {} for name in _SETS}
    for stage in recipe.stages:
        for name, facts in stage.facts().items():
            merged[name] |= dict.fromkeys(facts)
    found = {name: list(facts) for name, facts in merged.items()}
    if both := overlap(found["forget"], found["retain"]):
        raise RecipeError(
            f"forget and retain of all stages share {len(both)} of their prompts, first {both[0].prompt!r}: a fact "
            "cannot go and stay. Take it out of one of them."
        )
    for name, other in (*zip(_SETS, _SETS, strict=True), ("edits", "retain")):
        if differing := contradictions(found[name], found[other]):
            one, second = differing[0]
            sets = name if name == other else f"{name} and {other}"
            raise RecipeError(
                f"{sets} of all stages: {one.prompt!r} goes on with {one.target!r} and with "
                f"{second.target!r}. Keep one."
            )
    return found
