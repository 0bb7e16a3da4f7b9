"""`lowdim.diagnose`: what each block of a model does to the hidden states, to the loss and to the gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from lowdim.core.errors import CheckpointError, LowdimError, RecipeError, suggest
from lowdim.core.machine import free_memory
from lowdim.core.progress import Progress, Silent
from lowdim.core.settings import Range, check
from lowdim.data import windows as text_windows
from lowdim.data.batch import Batch, split
from lowdim.data.calibration import check_context, positions
from lowdim.data.tokens import Bos, check_vocabulary
from lowdim.data.windows import Windows
from lowdim.evaluate.diagnose.backwards import gradient_norms
from lowdim.evaluate.diagnose.forwards import TOKENS_PER_BATCH, Forwards, forwards
from lowdim.evaluate.diagnose.measures import Jacobian, Spectrum
from lowdim.evaluate.diagnose.result import BlockFacts, Diagnosis, LayerFacts
from lowdim.evaluate.quality.perplexity import paired
from lowdim.models.walk.opened import Opened, open_model
from lowdim.models.walk.stream import Block

CHOICES = ("drop", "gradients", "jacobian", "spectra")
"""What takes time and can be left out; variance, angles and influence come with the way forwards."""
CONTEXT, WINDOWS = 256, 8
_HANDED = (
    "No block was left out and no gradient taken: the blocks of this model hand each other more than hidden states."
)


def diagnose(
    model: PreTrainedModel | str | Path,
    *,
    text: Windows | str | Path | Iterable[Any] = "builtin",
    tokenizer: Any = None,
    windows: int = WINDOWS,
    context: int | None = None,
    measures: Sequence[str] = CHOICES,
    probes: int = 1,
    seed: int = 0,
    bos: Bos = "tokenizer",
    revision: str | None = None,
    dtype: str = "auto",
    compute: str = "float32",
    device: str = "auto",
    trust_remote_code: bool = False,
    progress: Progress | None = None,
    announce: Callable[[str], None] = lambda _: None,
) -> Diagnosis:
    """Measure what each decoder block of a causal language model does; no weight is changed.

    One way forwards gives the variance of the residual stream behind each block, angular distances, block influence,
    the spectra and, side by side with the whole model, the loss without each block. One way backwards gives the norms
    of the gradients and random probes of each block's Jacobian. One block of a checkpoint is in memory at a time.

    Args:
        model: a Transformers model, or a directory, hub id, GGUF file or ``builtin:`` name.
        text: windows, or what `lowdim.data.windows.windows` makes them from; the built-in Wikipedia slice if not given.
        tokenizer: for a model in memory and a text; a model on disk brings its own.
        windows: at most so many windows of the text, spread evenly over it.
        context: tokens in each; 256, or the model's positions if it has fewer, if not given.
        measures: which of "drop", "gradients", "jacobian" and "spectra" to take.
        probes: random vectors per block and 1024 tokens, for the Jacobian.
        seed: draws them.
        bos: where the start-of-text token goes.
        revision: branch, tag or commit of a hub id.
        dtype: of a checkpoint's weights, "auto" for its own.
        compute: dtype of a checkpoint's forwards; a model in memory computes in its own.
        device: where a checkpoint's blocks run.
        trust_remote_code: run the modelling code that a checkpoint brings along.
        progress: told how far each stage is.
        announce: given the plan, before the work.

    Raises:
        LowdimError: the model has no blocks, or they cannot be walked; the text is shorter than a window; too little
            memory; an unknown measure.
        NumericalError: a weight, a hidden state or a gradient is NaN or Inf; it is named.

    Paper: "The Curse of Depth in Large Language Models", arXiv 2502.05795; "Mix-LN", arXiv 2412.13795.

    Example:
        >>> import torch
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> tiny = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=2, n_positions=16))
        >>> found = diagnose(tiny, text=Windows(torch.arange(64).view(4, 16) % 32, {}))
        >>> len(found.blocks), found.blocks[1].influence > 0, len(found.layers)
        (2, True, 8)
    """
    wanted = _wanted(measures)
    for name, value in (("windows", windows), ("probes", probes)):
        check(name, value, Range(least=1, whole=True))
    check("context", context, Range(least=2, whole=True, optional=True))
    if "jacobian" not in wanted and (probes, seed) != (1, 0):
        raise RecipeError(
            f"probes={probes} and seed={seed} are of the random vectors for the Jacobian, which is not measured. Leave "
            "them out, or add jacobian to the measures."
        )
    opened = open_model(
        model,
        revision=revision,
        dtype=dtype,
        compute=compute,
        device=device,
        trust_remote_code=trust_remote_code,
        placed=True,
    )
    stream, progress = opened.stream, progress or Silent()
    handed = stream.manners.hands_on  # or refused, before weights are read
    if handed:
        wanted &= {"spectra"}
    cut = _text(opened, text, tokenizer, windows, context, bos)
    announce(_plan(opened, cut, wanted))
    opened.check_weights()
    layers: list[LayerFacts] = []

    def visit(block: Block) -> None:
        for layer in block.layers:
            spectrum = vars(Spectrum.of(layer.weight())) if "spectra" in wanted else {}
            layers.append(LayerFacts(layer.name, block.index, layer.master.numel(), **spectrum))

    batches = list(split([Batch(cut.input_ids)], TOKENS_PER_BATCH))
    back = bool({"gradients", "jacobian"} & wanted)
    found = forwards(stream, cut, batches, visit, progress, drop="drop" in wanted, keep=back)
    norms, jacobians = dict[str, float](), list[Jacobian]()
    if back:
        each = probes if "jacobian" in wanted else 0
        norms, jacobians = gradient_norms(stream, found, progress, norms="gradients" in wanted, probes=each, seed=seed)
    assert found.whole is not None
    return Diagnosis(
        model=opened.name,
        blocks=[_block(index, stream.block_name(index), found, norms, jacobians) for index in range(len(stream))],
        layers=[replace(layer, gradient=norms.get(f"{layer.name}.weight")) for layer in layers],
        angles=found.angles,
        entering=found.variances[0],
        perplexity=found.whole.value,
        protocol=found.whole.protocol,
        notes=([_HANDED] if handed else []) + found.notes,
        revision=opened.source.revision if opened.source else None,
        compute=str(stream.compute or opened.stored).removeprefix("torch."),
    )


def _wanted(measures: Sequence[str]) -> set[str]:
    for measure in measures:
        if measure not in CHOICES:
            raise RecipeError(f"unknown measure {measure!r}. {suggest(measure, CHOICES)}")
    return set(measures)


def _text(opened: Opened, text: Any, tokenizer: Any, limit: int, context: int | None, bos: Bos) -> Windows:
    """Return the windows, held to what the model takes."""
    if not isinstance(text, Windows):
        tokenizer = tokenizer or opened.tokenizer()
        if tokenizer is None:
            raise CheckpointError(f"{opened.name} has no tokenizer beside its weights. Give tokenizer=, or windows.")
        size = context or min(CONTEXT, positions(opened.config) or CONTEXT)
        check_context(size, opened.config)
        text = text_windows.windows(text, tokenizer, size, limit=limit, bos=bos)
    made: Windows = text
    check_context(made.context, opened.config)
    check_vocabulary(made.input_ids, _embedding(opened).shape[0])
    return made


def _embedding(opened: Opened) -> Any:
    embedding: Any = opened.stream.model.get_input_embeddings()
    return embedding.weight


def _plan(opened: Opened, text: Windows, wanted: set[str]) -> str:
    """Return what will be done, in words.

    Raises:
        LowdimError: the hidden states that have to be held do not fit into what memory is free.
    """
    blocks, dtype = len(opened.stream), opened.stream.compute or opened.stored
    passes = blocks + ("drop" in wanted) * blocks * (blocks - 1) // 2
    held = 1 + ("drop" in wanted) * blocks + bool({"gradients", "jacobian"} & wanted) * blocks
    states = held * text.input_ids.numel() * _embedding(opened).shape[1] * dtype.itemsize
    free = free_memory()
    if opened.stream.device.type == "cpu" and free is not None and states > free:
        raise LowdimError(
            f"{held} times the hidden states of {text.input_ids.numel():,} tokens take {states / 1e9:.1f} GB, and "
            f"{free / 1e9:.1f} GB are free. Take fewer windows, or leave 'drop' out of the measures."
        )
    source = text.protocol.get("source", "the given windows")
    source = "the built-in text (Wikipedia)" if source == "builtin" else source
    back = " and 1 way back" if {"gradients", "jacobian"} & wanted else ""
    return (
        f"{opened.name}: {blocks} blocks on {len(text)} windows of {text.context} tokens of {source}; {passes} passes "
        f"through a block{back}, {states / 1e6:,.0f} MB of hidden states."
    )


def _block(
    index: int, name: str, found: Forwards, norms: Mapping[str, float], jacobians: Sequence[Jacobian]
) -> BlockFacts:
    """Return what is known of one block."""
    own = [norm for parameter, norm in norms.items() if parameter.startswith(f"{name}.")]
    whole, without = found.whole, found.without[index]
    more: dict[str, float] = {"gradient": math.hypot(*own)} if own else {}
    if whole is not None and without is not None:
        change = paired(whole, without)
        more |= {"sensitivity": change.mean, "perplexity": without.value}
        more |= {} if math.isnan(change.stderr) else {"error": change.stderr}  # of a single window
    if jacobians and jacobians[index].count:
        seen = jacobians[index]
        more |= {"jacobian": seen.distance, "gain": seen.gain, "trace": seen.trace}
    return BlockFacts(
        index=index,
        variance=found.variances[index + 1],
        typical=found.typical[index + 1],
        angle=found.angles[index][0],
        influence=found.influences[index],
        **more,
    )
