"""A real server on a free port, in a thread of this process, and a model whose pace and failures tests set."""

from __future__ import annotations

import string
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lowdim.core.native import runtime_info
from lowdim.infer.decode.backend import Backend
from lowdim.infer.decode.hf_backend import HFBackend
from lowdim.infer.decode.native_backend import NativeBackend
from lowdim.infer.serve.keys import Keys
from lowdim.infer.serve.limits import Limits
from lowdim.infer.serve.run import Server, bound, url
from lowdim.infer.serve.service import Service

NAME = "tiny"
CONTEXT = 128
CHARACTERS = (" \n" + string.ascii_letters + string.digits + string.punctuation)[:93]
TEMPLATE = (
    "{% for m in messages %}"
    "{% if m.role == 'system' and not loop.first %}{{ raise_exception('system comes first') }}{% endif %}"
    "{{ '[' + m.role + ']' + m.content + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


def make_tokenizer() -> Any:
    """One token for each character, and a chat template."""
    vocabulary = {token: i for i, token in enumerate(["<s>", "<unk>", "</s>", *CHARACTERS])}
    plain = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Split(Regex(".|\n"), "isolated")
    plain.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    tokenizer.chat_template = TEMPLATE
    return tokenizer


needs_kernels = pytest.mark.skipif(not runtime_info().levels, reason="lowdim was installed without compiled kernels")


class Paced:
    """A backend with a pause in every step, and calls that fail where a test says so.

    Args:
        model: a causal LM.
        slots: sequences that may be open at a time.
        native: run it on the native engine, else on Transformers.
        cache: of the native engine.
    """

    pause = 0.0
    most_open = 0
    before_prefill: Callable[[Sequence[int]], None] | None = None
    before_step: Callable[[Sequence[int]], None] | None = None

    def __init__(self, model: Any, slots: int = 1, native: bool = False, cache: str = "auto") -> None:
        self._backend: Backend = (
            NativeBackend(model, slots=slots, max_length=CONTEXT, cache=cache)
            if native
            else HFBackend(model, slots=slots, max_length=CONTEXT)
        )
        self.vocab_size, self.max_length = self._backend.vocab_size, CONTEXT
        self.slots, self.eos_ids = slots, self._backend.eos_ids
        self._open: set[int] = set()
        self.steps: list[int] = []

    def open_slots(self) -> int:
        return len(self._open)

    def open(self) -> int:
        slot = self._backend.open()
        self._open.add(slot)
        self.most_open = max(self.most_open, len(self._open))
        return slot

    def close(self, slot: int) -> None:
        self._backend.close(slot)
        self._open.remove(slot)

    def length(self, slot: int) -> int:
        return self._backend.length(slot)

    def cache_bytes(self, tokens: int) -> int:
        return self._backend.cache_bytes(tokens)

    def prefill(self, slot: int, ids: Sequence[int]) -> np.ndarray:
        if self.before_prefill is not None:
            self.before_prefill(ids)
        return self._backend.prefill(slot, ids)

    def step(self, slots: Sequence[int], tokens: Sequence[int]) -> np.ndarray:
        if self.before_step is not None:
            self.before_step(tokens)
        time.sleep(self.pause)
        self.steps.append(len(slots))
        return self._backend.step(slots, tokens)


@dataclass
class Served:
    """A server that runs, and its insides."""

    base: str
    address: tuple[str, int]
    server: Server
    service: Service
    backend: Paced
    thread: threading.Thread
    clients: list[openai.OpenAI] = field(default_factory=list)

    def client(self, key: str = "none", **options: Any) -> openai.OpenAI:
        self.clients.append(openai.OpenAI(base_url=self.base, api_key=key, max_retries=0, **options))
        return self.clients[-1]

    def async_client(self, key: str = "none", **options: Any) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=self.base, api_key=key, max_retries=0, **options)

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        return httpx.post(f"{self.base}{path}", json=body, timeout=120, **options)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return httpx.get(f"{self.base.removesuffix('/v1')}{path}", timeout=120, **options)

    def head(self, path: str, **options: Any) -> httpx.Response:
        return httpx.head(f"{self.base.removesuffix('/v1')}{path}", timeout=120, **options)

    def metric(self, name: str) -> float:
        """Return the sum of a metric over its labels."""
        lines = [line.split() for line in self.get("/metrics").text.splitlines()]
        return sum(float(line[1]) for line in lines if line[0].partition("{")[0] == name)

    def outcome(self, name: str) -> float:
        """Return how many requests ended so."""
        lines = self.get("/metrics").text.splitlines()
        found = [x for x in lines if x.startswith("lowdim_requests_total{") and f'outcome="{name}"' in x]
        return sum(float(line.split()[1]) for line in found)

    def wait(self, condition: Callable[[], bool], seconds: float = 60.0) -> None:
        """Wait for something that happens in another thread."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "it did not happen"
            time.sleep(0.01)

    def wait_idle(self) -> None:
        self.wait(lambda: self.service.scheduler.open == 0 and self.backend.open_slots() == 0)


@contextmanager
def serving(
    model: Any,
    tokenizer: Any,
    keys: Sequence[str] = (),
    slots: int = 4,
    pause: float = 0.0,
    native: bool = False,
    cache: str = "auto",
    **limits: Any,
) -> Iterator[Served]:
    """Serve until the block ends; check that nothing is left behind."""
    before = set(threading.enumerate())
    backend = Paced(model, slots, native, cache)
    backend.pause = pause
    service = Service(NAME, backend, tokenizer, Limits(concurrent=slots, **{"grace": 0.0} | limits))
    ready = threading.Event()
    with bound("127.0.0.1", 0) as sockets:
        server = Server(service, Keys(keys), sockets, ready.set)
        thread = threading.Thread(target=server.serve_forever, name="test-server")
        served = Served(url(sockets), sockets[0].getsockname(), server, service, backend, thread)
        thread.start()
        assert ready.wait(60)
        try:
            yield served
        finally:
            for client in served.clients:
                client.close()
            if thread.is_alive():
                server.end()
            thread.join(60)
    assert not thread.is_alive()
    assert not [t.name for t in set(threading.enumerate()) - before if t.name.startswith("lowdim")]
