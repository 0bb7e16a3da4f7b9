"""A form as its users run it: quality, bytes, files and speed of one and the same loaded model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from lowdim.core.progress import Progress
from lowdim.data.calibration import positions
from lowdim.data.windows import Windows
from lowdim.evaluate.quality.forward import Forward
from lowdim.evaluate.quality.perplexity import perplexity
from lowdim.evaluate.quality.tasks import PRESETS
from lowdim.evaluate.quality.zeroshot import evaluate_tasks
from lowdim.infer.bench.decode import ROUNDS, START, Decoder, LowdimDecoder, time_steps
from lowdim.infer.bench.models import bytes_per_token
from lowdim.infer.bench.result import Contestant
from lowdim.infer.bench.timing import rates
from lowdim.infer.sparse import load as runtime
from lowdim.infer.sparse.accelerate import accelerate
from lowdim.infer.sparse.matrix import multiplies_bf16
from lowdim.pipeline.front.forms import Form
from lowdim.pipeline.front.settings import Settings
from lowdim.prune.measure import Measured
from lowdim.prune.sidecar import weight_bytes

SECONDS = 60.0
"""That the timed tokens of a form may take, as those of a pruning run."""
_TOKENS = 1024  # positions in a forward of the evaluation


@dataclass(frozen=True)
class Row:
    """What is known of a form.

    Attributes:
        form: its name.
        sort: see `lowdim.pipeline.front.forms.Form`.
        perplexity: on the windows.
        tasks: accuracy by task.
        bytes_per_token: of the loaded matrices that a step reads, the head's among them, and one row of the embedding.
        file_bytes: of the files with weights.
        tokens_per_s: of greedy decoding in this runtime, one sequence.
        backend: what drove it.
        note: why numbers are missing, or what must be known with them.
        outcomes: of the hard tasks, how each question was answered, as `lowdim.prune.measure.Measured` writes it.
    """

    form: str
    sort: str
    perplexity: float | None = None
    tasks: Mapping[str, float] = field(default_factory=dict)
    bytes_per_token: int | None = None
    file_bytes: int | None = None
    tokens_per_s: float | None = None
    backend: str = ""
    note: str = ""
    outcomes: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def measure(
    form: Form, path: Path, settings: Settings, tokenizer: Any, text: Windows, progress: Progress
) -> tuple[Row, Mapping[str, Any]]:
    """Measure a form that lies in a directory.

    Returns:
        The row, and the protocol of its perplexity.
    """
    model = opened(form, path, settings.trust_remote_code)
    room, size = positions(model.config), bytes_per_token(model) + embedding_row(model)
    vocab = model.config.get_text_config(decoder=True).vocab_size
    run = Run(model, LowdimDecoder(model), vocab, room, size, weight_bytes(path))
    return measure_run(form, run, settings, tokenizer, text, progress)


@dataclass(frozen=True)
class Run:
    """A form that is loaded: what answers, what is timed, and its sizes; see `Row`. ``room`` bounds a sequence."""

    model: PreTrainedModel | Forward
    decoder: Decoder
    vocab: int
    room: int | None
    bytes_per_token: int
    file_bytes: int


def measure_run(
    form: Form, run: Run, settings: Settings, tokenizer: Any, text: Windows, progress: Progress
) -> tuple[Row, Mapping[str, Any]]:
    """Measure a form that is loaded; see `measure`."""
    with progress.stage(f"Measure {form.name}", 2 * ROUNDS + 1, "turns") as stage, torch.inference_mode():
        quality = perplexity(run.model, text, tokens_per_batch=_TOKENS)
        scores = evaluate_tasks(run.model, tokenizer, settings.tasks, tokens_per_batch=_TOKENS, **settings.asking)
        stage.advance(ROUNDS)
        who = Contestant("lowdim", form.kind, form.zeros)
        tokens = max(1, min(settings.tokens, (run.room or settings.tokens + START) - START - 1))
        times = time_steps({who: run.decoder}, tokens, run.vocab, advance=stage.advance, seconds=SECONDS)
    left_out, notes = ROUNDS * tokens - len(times[who]), []
    if form.made and form.kind == "bf16" and not multiplies_bf16():
        notes.append("stored as bf16 and multiplied in fp32, since this processor has no products of bf16")
    if left_out:
        notes.append(f"timed on {len(times[who])} tokens: {left_out} left out, {SECONDS:g} s were up")
    hard = {name: found for name, found in scores.items() if name in PRESETS["hard"]}
    row = Row(
        form.name,
        form.sort,
        perplexity=quality.value,
        tasks={name: found.value for name, found in scores.items()},
        bytes_per_token=run.bytes_per_token,
        file_bytes=run.file_bytes,
        tokens_per_s=rates(times[who])["tokens_per_s"],
        backend=run.decoder.backend,
        note="; ".join(notes),
        outcomes=Measured(tasks=hard).to_dict()["tasks"],
    )
    return row, quality.protocol


def opened(form: Form, path: Path, trust_remote_code: bool = False) -> PreTrainedModel:
    """Return a form in this runtime; with rounded weights the head is rounded to int8 as it is loaded."""
    model = runtime.load(path, form.kind, trust_remote_code=trust_remote_code)
    if form.plain:
        accelerate(model, dtype=form.kind, min_sparsity=1.0)
    return model


def embedding_row(model: PreTrainedModel) -> int:
    """Return the bytes of one token's row of the embedding."""
    weight: Any = model.get_input_embeddings().weight
    return int(weight[0].nbytes)
