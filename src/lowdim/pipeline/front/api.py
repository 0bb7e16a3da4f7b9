"""The front of a model: every form made, measured, and set side by side."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lowdim.core.errors import CheckpointError, LowdimError
from lowdim.core.files import read_json
from lowdim.core.machine import machine
from lowdim.core.progress import Progress, Silent
from lowdim.data.calibration import check_context, positions
from lowdim.data.windows import Windows, windows
from lowdim.evaluate.quality.zeroshot import check_tasks, hashes
from lowdim.models.walk.opened import Opened, open_model
from lowdim.pipeline.front.forms import Form
from lowdim.pipeline.front.make import Maker, check_text, check_time
from lowdim.pipeline.front.measure import Row, measure
from lowdim.pipeline.front.peers import foreign, room_for
from lowdim.pipeline.front.plan import make_plan
from lowdim.pipeline.front.result import Result, budget_of
from lowdim.pipeline.front.settings import CONTEXT, Settings
from lowdim.prune.api import prune
from lowdim.prune.recipe import Recipe
from lowdim.runs.directory import Directory
from lowdim.runs.fingerprint import refuse_differences, versions

FILE = "front.json"


def front(
    settings: Settings,
    out: str | Path,
    *,
    resume: bool = False,
    progress: Progress | None = None,
    announce: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Make and measure every form of a model.

    Args:
        settings: which forms, on which text.
        out: directory to appear: ``front.json``, and a directory for every form. Until all are measured there is
            ``OUT.partial``, in which every form and every row is durable once it is finished.
        resume: go on from ``OUT.partial``; a finished front of the same settings is returned as it is.
        progress: told of stages and their advance.
        announce: given the plan as text before the work begins, and the plan of every training.

    Returns:
        What is in ``front.json``, see `lowdim.pipeline.front.result.Result`.

    Raises:
        LowdimError: the model has no tokenizer, there is too little text or disk, or what pruning and recovery raise.
    """
    progress, announce, target = progress or Silent(), announce or (lambda _: None), Path(out)
    opened, tokenizer, text = _ready(settings)
    assert opened.checkpoint is not None
    fingerprint = {
        "settings": settings.to_dict(),
        "model": opened.checkpoint.fingerprint(),
        "evaluation": {
            "text": text.protocol["text"],
            "questions": hashes(settings.tasks, limit=settings.limit, seed=settings.seed),
        },
        "versions": versions(),
    }
    if resume and (target / FILE).exists():
        found = read_json(target / FILE)
        refuse_differences(f"the finished front in {target}", found["fingerprint"], fingerprint)
        return found
    most = positions(opened.config)
    longest = check_tasks(tokenizer, settings.tasks, max_length=most, **settings.asking)
    with Directory(target, resume=resume) as directory:
        forms = settings.chosen()
        own = [form for form in forms if form.made]
        room = room_for(text, longest, most)
        plan = make_plan(opened, settings.model, settings, forms, tokenizer, text, room)
        if not directory.state:
            directory.require_space(plan.file_bytes)
        directory.begin(fingerprint)
        if not directory.state.get("rows"):
            try:
                check_time(own, settings, most)
            except LowdimError:
                directory.reset()  # nothing in it is worth going on from
                raise
        announce(plan.render())
        rows = _rows(settings, forms, directory, opened, tokenizer, text, room, progress, announce)
        trained = settings.each if any(form.trained for form in forms) else None
        budget, protocol = budget_of(rows, settings.budget_mb), directory.state.get("protocol", {})
        result = Result(settings.model, tuple(rows), budget, protocol, machine(), trained).to_dict()
        directory.write_json(FILE, result | {"fingerprint": fingerprint})
        directory.finish()
    return read_json(target / FILE)


def _ready(settings: Settings) -> tuple[Opened, Any, Windows]:
    """Open the model and cut the text, so that what is wrong with either is known before any work."""
    opened = open_model(settings.model, trust_remote_code=settings.trust_remote_code)
    tokenizer = opened.tokenizer()
    if tokenizer is None:
        raise CheckpointError(
            f"{settings.model} has no tokenizer beside its weights, so no text can be read. Copy its files there."
        )
    context = settings.context or min(CONTEXT, positions(opened.config) or CONTEXT)
    check_context(context, opened.config, "context")
    bos: Any = settings.bos
    text = windows(settings.text, tokenizer, context, limit=settings.windows, bos=bos)
    embedding: Any = opened.stream.model.get_input_embeddings()
    most = positions(opened.config)
    check_text(settings.chosen(), settings, most, tokenizer, embedding.weight.shape[0])
    opened.check_weights()
    return opened, tokenizer, text


def _rows(
    settings: Settings,
    forms: list[Form],
    directory: Directory,
    opened: Opened,
    tokenizer: Any,
    text: Windows,
    room: int,
    progress: Progress,
    announce: Callable[[str], None],
) -> list[Row]:
    """Return the row of every form: an earlier attempt's, or one that is made and measured now."""
    done: dict[str, Any] = directory.state.setdefault("rows", {})
    base = _in_bf16(opened, settings, directory, progress)
    maker = Maker(base, directory.partial, settings, positions(opened.config), progress, announce)
    with progress.stage("Front", len(forms), "forms") as stage:
        for form in forms:
            if form.name not in done:
                if form.made:
                    row, protocol = measure(form, maker.make(form), settings, tokenizer, text, progress)
                    directory.state["protocol"] = dict(protocol)
                else:
                    row = foreign(form, directory.partial, settings, room, tokenizer, text, progress)
                done[form.name] = row.to_dict()
                directory.save_state()
            stage.advance()
    return [Row(**done[form.name]) for form in forms]


def _in_bf16(opened: Opened, settings: Settings, directory: Directory, progress: Progress) -> Path:
    """Return the dense model's directory, written anew where its weights are not bf16."""
    assert opened.source is not None
    if opened.source.dtype == "bfloat16":
        return opened.source.path
    out = directory.partial / "dense-bf16"
    trusted = settings.trust_remote_code
    recipe = Recipe(sparsity=0.0, dtype="bfloat16", evaluation={"text": None}, trust_remote_code=trusted)
    prune(str(opened.source.path), recipe, out=out, resume=True, progress=progress)
    return out
