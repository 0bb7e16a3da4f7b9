"""Every causal LM class of the installed Transformers, tiny, from disk to disk: exact, refused, or not to be built.

``python -m tests.models.every_causal_lm --docs docs/support.md`` checks all of them, each in a process of its own, and
writes the table of the docs. ``python -m tests.models.every_causal_lm llama mamba`` prints the verdicts of some.
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import re
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tests.models.independent import logits, wrong_masks
from tests.models.tiny_configs import TYPES, VOCAB, randomise, tiny_config
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from lowdim.core.errors import LowdimError
from lowdim.data.batch import Batch
from lowdim.models.disk.checkpoint import Checkpoint
from lowdim.models.disk.convert import convert
from lowdim.models.load import load, quiet
from lowdim.models.walk.stream import Stream
from lowdim.prune.api import prune
from lowdim.prune.recipe import Recipe
from lowdim.prune.session import open_session

OUTCOMES = ("exact", "refused", "not buildable")
HEAD = """# Supported models

Every model type that Transformers {version} lists as a causal language model, {types} of them:
{numbers}. Each is built with tiny random weights and pruned from disk to disk. *Exact* means that

- the masks of Wanda are those that whole forward passes of the plain model give, with samples of one length and of
  several;
- the logits of the walk through the blocks are the model's own, and a block that runs twice gives the same bits;
- the output has the names, shapes and dtypes of the source, kept weights bit by bit, and loads in plain Transformers;
- packed storage gives the same logits.

*Refused* is what a run says before it calibrates anything, with the reason; `lowdim inspect MODEL` says it from the
config alone. *Not buildable* is what Transformers itself does not build, run or read back at this size: nothing is
known of it.

This page is written by `python -m tests.models.every_causal_lm --docs docs/support.md`.
"""
SECONDS = 300
LENGTHS = (14, 9, 11, 14)


@dataclass(frozen=True)
class Verdict:
    """What became of one model type.

    Attributes:
        kind: the model type.
        outcome: "exact", "refused", "not buildable", or "wrong".
        reason: why it is not exact.
    """

    kind: str
    outcome: str
    reason: str = ""


class Unbuildable(Exception):
    """Transformers cannot build the tiny model, run it, or read back what it saved."""


def tokens() -> list[Tensor]:
    """Return four samples of unequal lengths."""
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(3, VOCAB, (length,), generator=generator) for length in LENGTHS]


def build(kind: str, path: Path) -> PreTrainedModel:
    """Save a tiny model and return it as plain Transformers reads it.

    Raises:
        Unbuildable: it cannot be had.
    """
    try:
        torch.manual_seed(0)
        made = AutoModelForCausalLM.from_config(tiny_config(kind), dtype=torch.float32)
        randomise(made)
        made.tie_weights()
        made.eval().save_pretrained(path)
        model = stock(path)
        out = logits(model, tokens()[0][None])
        same = torch.allclose(out, logits(made, tokens()[0][None]), atol=1e-5)
    except Exception as error:
        raise Unbuildable(f"{type(error).__name__}: {_short(error)}") from error
    if not bool(out.isfinite().all()):
        raise Unbuildable("its random logits are not finite")
    if not same:
        raise Unbuildable("Transformers does not read back what it saved")
    return model


def stock(path: Path) -> PreTrainedModel:
    """Load a directory with plain Transformers, experts one by one."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(path, experts_implementation="eager")
    return model.eval()


def check(kind: str, room: Path) -> Verdict:
    """Build, prune, reload and compare one model type."""
    with warnings.catch_warnings(), quiet():
        warnings.simplefilter("ignore")
        try:
            model = build(kind, room / "in")
        except Unbuildable as error:
            return Verdict(kind, "not buildable", str(error))
        try:
            session = open_session(str(room / "in"), recipe())
        except LowdimError as error:
            return Verdict(kind, "refused", _short(error))
        try:
            problems = list(_problems(model, session.stream, room))
        except Exception as error:
            problems = [f"{type(error).__name__}: {_short(error)}"]
    return Verdict(kind, "wrong", problems[0]) if problems else Verdict(kind, "exact")


def recipe() -> Recipe:
    """Return a recipe for tiny models."""
    sizes: dict[str, Any] = {"calibration": {"samples": len(LENGTHS), "context": 16}, "evaluation": {"text": None}}
    return Recipe(sparsity=0.5, score="wanda", compute="float32", **sizes)


def _problems(model: PreTrainedModel, stream: Stream, room: Path) -> Iterator[str]:
    """Yield what is wrong, cheapest first; the first one is enough."""
    yield from _streamed(model, stream)
    for name, samples in (("equal", [ids[: min(LENGTHS)] for ids in tokens()]), ("padded", tokens())):
        out = room / name
        data = [{"input_ids": ids.tolist()} for ids in samples]
        made = prune(str(room / "in"), recipe(), calibration=data, out=out)
        pruned = stock(out)
        parameters = {n: p.detach() for n, p in pruned.named_parameters()}
        yield from (f"{name}: {what}" for what in wrong_masks(copy.deepcopy(model), parameters, samples))
        yield from (f"{name}: {what}" for what in _on_disk(room / "in", out))
        if not 0.3 < made.sparsity < 0.55:
            yield f"{name}: sparsity {made.sparsity:.3f} was written where 0.5 was asked for"
    yield from _packed(room / "equal", room / "packed")


def _streamed(model: PreTrainedModel, stream: Stream) -> Iterator[str]:
    ids = torch.stack([x[: min(LENGTHS)] for x in tokens()])
    expected = logits(model, ids)
    off = float((next(stream.forward([Batch(ids)])) - expected).abs().max())
    if off > 1e-4 * max(1.0, float(expected.abs().max())):
        yield f"streamed logits are off by {off:.1e}"
    [made] = stream.capture([Batch(ids)])
    for index in range(len(stream)):
        with stream.block(index) as block, torch.no_grad():
            first, again = block.forward(made), block.forward(made)
            block.advance(made)
            if not (torch.equal(first, again) and torch.equal(first, made.hidden)):
                yield f"block {index} gives other bits when it runs again"


def _on_disk(before: Path, after: Path) -> Iterator[str]:
    old, new = Checkpoint(before), Checkpoint(after)
    if set(old.names()) != set(new.names()):
        yield f"other tensors on disk: {sorted(set(old.names()) ^ set(new.names()))[:2]}"
        return
    for name in old.names():
        a, b = old.read(name), new.read(name)
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            yield f"{name} is {list(b.shape)} {b.dtype} on disk, was {list(a.shape)} {a.dtype}"
        elif not torch.equal(b, torch.where(b == 0, torch.zeros_like(a), a)):
            yield f"{name}: kept weights are not those of the source"


def _packed(dense: Path, out: Path) -> Iterator[str]:
    convert(dense, out, "packed")
    ids = tokens()[0][None]
    a, b = logits(stock(dense), ids), logits(load(out), ids)
    if not torch.allclose(a, b, atol=1e-4 * max(1.0, float(a.abs().max()))):
        yield f"packed logits are off by {float((a - b).abs().max()):.1e}"


def _short(error: BaseException) -> str:
    text = re.sub(r"'?/\S*/in'?", "the model", str(error)).replace("|", "/")
    return " ".join(text.split())[:160]


def sweep(kinds: Iterable[str]) -> Iterator[Verdict]:
    """Check model types, each in a process of its own, which may crash or hang."""
    context = multiprocessing.get_context("fork")
    for kind in kinds:
        with tempfile.TemporaryDirectory() as room:
            here, there = context.Pipe(duplex=False)
            child = context.Process(target=_child, args=(kind, Path(room), there))
            child.start()
            found = here.recv() if here.poll(SECONDS) else Verdict(kind, "wrong", f"did not end within {SECONDS} s")
            child.kill()
            child.join()
        yield found


def _child(kind: str, room: Path, there: Any) -> None:
    torch.set_num_threads(1)
    try:
        there.send(check(kind, room))
    except BaseException as error:
        there.send(Verdict(kind, "wrong", f"{type(error).__name__}: {_short(error)}"))


def page(verdicts: list[Verdict]) -> str:
    """Return the page of the docs."""
    counts = {outcome: sum(v.outcome == outcome for v in verdicts) for outcome in OUTCOMES}
    rows = [f"| `{v.kind}` | {TYPES[v.kind]} | {v.outcome}{': ' * bool(v.reason)}{v.reason} |" for v in verdicts]
    numbers = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
    head = HEAD.format(version=version("transformers"), types=len(verdicts), numbers=numbers)
    return "\n".join([head, "| model type | class | verdict |", "|---|---|---|", *rows, ""])


def main() -> int:
    """Check model types and print the verdicts; 1 if one is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*")
    parser.add_argument("--docs", type=Path)
    asked = parser.parse_args()
    verdicts = []
    for found in sweep(asked.kinds or TYPES):
        verdicts.append(found)
        print(f"{found.kind:28} {found.outcome:14} {found.reason}", flush=True)
    for outcome in dict.fromkeys(v.outcome for v in verdicts):
        print(outcome, sum(v.outcome == outcome for v in verdicts))
    if asked.docs:
        asked.docs.write_text(page(verdicts), encoding="utf-8")
    return int(any(v.outcome == "wrong" for v in verdicts))


if __name__ == "__main__":
    sys.exit(main())
