"""``lowdim generate``: continue a prompt, word by word as it comes."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lowdim.cli.checks import check_characters, check_unused
from lowdim.cli.guard import guarded
from lowdim.cli.options import Cache, Debug, Dtype, Model, Revision, Threads, Trust
from lowdim.cli.screen import fall_silent, say
from lowdim.core.errors import LowdimError, RecipeError, suggest
from lowdim.core.lazy import torch
from lowdim.infer.bench.settings import DTYPES
from lowdim.infer.decode.backend import check_cache

if TYPE_CHECKING:
    from lowdim.infer.decode.open import Opened
    from lowdim.infer.decode.sampling import Sampling


@guarded()
def generate(
    model: Model,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="Text to continue; - reads it from stdin.")],
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens to generate.")] = 256,
    temperature: Annotated[
        float, typer.Option(min=0, help="0 takes the best token; 1 draws as the model has it.")
    ] = 0.0,
    top_k: Annotated[int, typer.Option(min=0, help="Draw among so many; 0 is all.")] = 0,
    top_p: Annotated[float, typer.Option(min=0, max=1, help="Draw among the fewest with this share; 1 is all.")] = 1.0,
    repetition_penalty: Annotated[float, typer.Option(min=0, help="Above 1 what was said becomes less likely.")] = 1.0,
    stop: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="End before this text; may be given several times."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the draws; another text every time if not given.")] = None,
    dtype: Dtype = None,
    cache: Cache = "auto",
    threads: Threads = None,
    chat: Annotated[bool, typer.Option("--chat", help="PROMPT is a question: use the chat template.")] = False,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="What the model is told before a --chat.")] = None,
    revision: Revision = None,
    trust_remote_code: Trust = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="The text alone, no summary.")] = False,
    debug: Debug = False,
) -> None:
    """Continue a prompt on this machine's CPU; the text goes to stdout as it comes, a summary to stderr."""
    if dtype is not None and dtype not in DTYPES:
        raise RecipeError(f"--dtype: there is no {dtype!r}. {suggest(dtype, DTYPES)}")
    check_cache(cache, "--cache")
    if system is not None and not chat:
        raise RecipeError("--system belongs to --chat. Add --chat, or write it into the prompt.")
    sampling = _sampling(max_tokens, temperature, top_k, top_p, repetition_penalty, seed, tuple(stop or ()))
    if temperature == 0:
        drawn = {"--top-k": top_k > 0, "--top-p": top_p < 1, "--seed": seed is not None}
        check_unused("at --temperature 0, which takes the best token. Give a temperature", drawn)
    text = _read(prompt)
    for name, given in (("--system", system or ""), ("--stop", "".join(sampling.stop))):
        check_characters(name, given)
    engine, tokenizer = _open(model, revision, dtype, cache, threads, trust_remote_code)
    ids = _encode(tokenizer, text, chat, system)
    watch = _Watch(len(ids))
    try:
        with _broken_pipe_ends(watch):
            _stream(engine, tokenizer, ids, sampling, watch)
    finally:
        if not quiet and watch.finish:
            say(_summary(engine, cache, watch))


def _sampling(
    max_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    penalty: float,
    seed: int | None,
    stop: tuple[str, ...],
) -> Sampling:
    from lowdim.infer.decode.sampling import Sampling

    try:
        return Sampling(max_tokens, temperature, top_k, top_p, penalty, seed, stop)
    except LowdimError as error:
        raise RecipeError(str(error)) from error


def _read(prompt: str) -> str:
    """Return the prompt's text.

    Raises:
        RecipeError: stdin is closed, or there are bytes that are no text.
    """
    if prompt != "-":
        check_characters("PROMPT", prompt)
        return prompt
    if sys.stdin is None or sys.stdin.closed:
        raise RecipeError("PROMPT is -, but stdin is closed. Pipe a text into it, or give the text itself.")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    text = sys.stdin.read()
    check_characters("what comes from stdin", text)
    return text


def _open(
    model: str, revision: str | None, dtype: str | None, cache: str, threads: int | None, trusted: bool
) -> tuple[Opened, Any]:
    from lowdim.infer.decode.open import open_backend
    from lowdim.infer.decode.ready import open_ready

    if threads is not None:
        torch.set_num_threads(threads)
    loaded, tokenizer = open_ready(model, revision, dtype, trusted)
    return open_backend(loaded, cache=cache), tokenizer


def _encode(tokenizer: Any, text: str, chat: bool, system: str | None) -> list[int]:
    """Return the tokens of a prompt, with whatever begins a text for this model."""
    from lowdim.infer.decode.prompt import encode_chat, encode_text

    if not chat:
        return encode_text(tokenizer, text)
    if not tokenizer.chat_template:
        raise RecipeError("the model has no chat template. Leave --chat out, or take a model tuned for chat.")
    told = [] if system is None else [{"role": "system", "content": system}]
    return encode_chat(tokenizer, [*told, {"role": "user", "content": text}])


@dataclass
class _Watch:
    """When the tokens came, in seconds."""

    prompt: int
    start: float = field(default_factory=time.perf_counter)
    first: float = 0.0
    last: float = 0.0
    tokens: int = 0
    finish: str = ""  # until it ended in good order

    def count(self) -> None:
        self.last = time.perf_counter()
        self.first = self.first or self.last
        self.tokens += 1


def _stream(engine: Opened, tokenizer: Any, ids: list[int], sampling: Sampling, watch: _Watch) -> None:
    from lowdim.infer.decode.generate import generate as run

    watch.start = time.perf_counter()
    try:
        for piece in run(engine.backend, tokenizer, ids, sampling):
            watch.count()
            watch.finish = piece.finish_reason or ""
            typer.echo(piece.text, nl=False)
    except KeyboardInterrupt:
        watch.finish = "an interrupt"
        raise
    finally:
        typer.echo()


@contextmanager
def _broken_pipe_ends(watch: _Watch) -> Iterator[None]:
    """End well when whoever reads stdout has read enough."""
    try:
        yield
    except BrokenPipeError:
        watch.finish = watch.finish or "its reader"
        fall_silent()
        raise typer.Exit from None


def _summary(engine: Opened, cache: str, watch: _Watch) -> str:
    from lowdim.core.native import runtime_info

    info = runtime_info()
    engine_name = "native engine" if engine.name == "native" else f"Transformers, as {engine.reason}"
    kept = "" if cache == "auto" else f", cache in {cache}"
    parts = [f"{engine_name}{kept}; {info.level} kernels, {info.threads} thread{'s' * (info.threads > 1)}"]
    if watch.first:
        parts.append(f"prompt {watch.prompt} tokens at {watch.prompt / (watch.first - watch.start):.1f} tokens/s")
    if watch.tokens > 1:
        speed = (watch.tokens - 1) / (watch.last - watch.first)
        parts.append(f"{watch.tokens} tokens at {speed:.1f} tokens/s")
    return "; ".join([*parts, f"ended by {watch.finish}"])
