"""``lowdim serve``: a model behind an OpenAI-compatible HTTP server."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lowdim.cli.checks import check_characters
from lowdim.cli.guard import guarded
from lowdim.cli.options import Cache, Debug, Dtype, Model, Revision, Threads, Trust
from lowdim.cli.screen import say
from lowdim.core.errors import RecipeError, suggest
from lowdim.core.lazy import torch
from lowdim.core.machine import free_memory
from lowdim.infer.bench.settings import DTYPES
from lowdim.infer.decode.backend import check_cache, longest
from lowdim.infer.serve import check_installed
from lowdim.infer.serve.keys import Keys
from lowdim.infer.serve.limits import Limits

if TYPE_CHECKING:
    from lowdim.infer.decode.backend import Backend
    from lowdim.infer.serve.service import Service

_SHARE = 0.8
"""Of the free memory, for keys and values: prompts, texts and other programs have the rest."""


@guarded(after_interrupt="The server has ended.")
def serve(
    model: Model,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 is every IPv4 one of this machine, :: every IPv6 one.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 is any free one.")] = 8000,
    api_key_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Ask clients for one of the keys in it, one a line.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="The model's name for clients; from MODEL if not given.")] = None,
    dtype: Dtype = None,
    cache: Cache = "auto",
    cache_memory: Annotated[
        float | None,
        typer.Option(
            metavar="GB",
            help="Most memory for keys and values; four fifths of what is free if not given.",
        ),
    ] = None,
    threads: Threads = None,
    max_concurrent: Annotated[int, typer.Option(help="Answers that are generated together.")] = 8,
    queue: Annotated[int, typer.Option(help="Answers that may wait; more are refused with 429.")] = 64,
    max_tokens: Annotated[
        int | None, typer.Option(help="Most tokens of one answer; what the context leaves if not given.")
    ] = None,
    context: Annotated[
        int | None, typer.Option(help="Tokens of prompt and answer together; the model's own if not given.")
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds that an answer may take, waiting included.")] = 600.0,
    revision: Revision = None,
    trust_remote_code: Trust = False,
    debug: Debug = False,
) -> None:
    """Answer OpenAI's clients over HTTP until Ctrl-C: chat, completions, streams, many at a time."""
    check_installed()
    limits = Limits(max_concurrent, queue, max_tokens, context, timeout, cache_memory=_bytes(cache_memory))
    check_cache(cache, "--cache")
    if dtype is not None and dtype not in DTYPES:
        raise RecipeError(f"--dtype: there is no {dtype!r}. {suggest(dtype, DTYPES)}")
    if name is not None and not name.strip():
        raise RecipeError("--name is empty. Leave it out, or give the name that clients ask for.")
    check_characters("--name", name or "")
    keys = _keys(api_key_file)
    from lowdim.infer.serve.run import Server, bound, url

    with bound(host, port) as sockets:
        _warn(sockets, host, keys)
        if threads is not None:
            torch.set_num_threads(threads)
        service = _open(model, revision, dtype, cache, name or _name_of(model), limits, trust_remote_code)
        ready = f"Serving {service.name} at {url(sockets)}; Ctrl-C ends it."
        Server(service, keys, sockets, started=lambda: say(ready)).serve_forever()


def _bytes(gigabytes: float | None) -> int | None:
    if gigabytes is None:
        return None
    if not 0 < gigabytes < 1e9:
        raise RecipeError(f"--cache-memory must be a number of GB above 0, got {gigabytes}.")
    return max(1, int(gigabytes * 1e9))


def _keys(file: Path | None) -> Keys:
    from lowdim.infer.serve.keys import Keys, is_exposed, read_keys

    if file is None:
        return Keys([])
    keys = read_keys(file)
    if is_exposed(file):
        say(f"Warning: every user of this machine can read {file}. Consider: chmod 600 {file}")
    return keys


def _warn(sockets: list[socket.socket], host: str, keys: Keys) -> None:
    from lowdim.infer.serve.run import is_loopback, lacks_ipv4

    if lacks_ipv4(sockets):
        other = "127.0.0.1" if is_loopback(sockets) else "0.0.0.0"
        say(
            f"Note: {host} is IPv6 alone: 127.0.0.1 and other IPv4 addresses are not answered. For them: --host {other}"
        )
    if not keys and not is_loopback(sockets):
        say(
            f"Warning: {host} can be reached from other machines, and there is no API key: whoever reaches it can "
            "use the model. Add --api-key-file, or leave --host out."
        )


def _name_of(model: str) -> str:
    """Return a model's name for clients.

    Example:
        >>> _name_of("builtin:smollm2-135m"), _name_of("org/name"), _name_of("models/tiny.gguf")
        ('smollm2-135m', 'org/name', 'tiny')
    """
    path = Path(model).expanduser()
    if path.suffix.lower() == ".gguf":
        return path.stem
    return path.resolve().name if path.exists() else model.removeprefix("builtin:")


def _open(
    model: str, revision: str | None, dtype: str | None, cache: str, name: str, limits: Limits, trusted: bool
) -> Service:
    from lowdim.data.errors import DataError
    from lowdim.infer.decode.open import open_backend
    from lowdim.infer.decode.ready import open_ready
    from lowdim.infer.serve.service import Service

    try:
        loaded, tokenizer = open_ready(model, revision, dtype, trusted, limits.context)
    except DataError as error:
        raise RecipeError(str(error)) from error
    most = longest(loaded.config.get_text_config(decoder=True))
    engine = open_backend(loaded, slots=limits.concurrent, max_length=min(limits.context or most, most), cache=cache)
    if engine.reason:
        say(f"The native engine does not run this model ({engine.reason}); Transformers runs it, more slowly.")
    elif limits.cache_memory is None:
        limits = replace(limits, cache_memory=_room(engine.backend, limits.concurrent))
    return Service(name, engine.backend, tokenizer, limits)


def _room(backend: Backend, concurrent: int) -> int | None:
    """Return the bytes that keys and values may take, of what is free; None if all answers fit, however long."""
    free = free_memory()
    if free is None or concurrent * backend.cache_bytes(backend.max_length) <= _SHARE * free:
        return None
    room = max(1, int(_SHARE * free))
    say(
        f"Keys and values of all answers may take {room / 1e9:.2g} GB of the {free / 1e9:.2g} that are free: answers "
        "wait for room. --cache-memory sets another bound; --context, --max-concurrent and --cache make them smaller."
    )
    return room
