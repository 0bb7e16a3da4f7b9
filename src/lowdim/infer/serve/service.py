"""One served model: turns checked requests into answers."""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_right
from typing import Any

from lowdim.core.errors import RecipeError
from lowdim.infer.decode.backend import Backend
from lowdim.infer.serve.answer import Answer
from lowdim.infer.serve.errors import ApiError
from lowdim.infer.serve.job import Job
from lowdim.infer.serve.limits import Limits
from lowdim.infer.serve.mailbox import Mailbox
from lowdim.infer.serve.metrics import Metrics
from lowdim.infer.serve.prompts import Prompts
from lowdim.infer.serve.replies import ChatForm, Form, Reply, TextForm
from lowdim.infer.serve.scheduler import RUNNING, Scheduler
from lowdim.infer.serve.schema import ChatRequest, CompletionRequest, Generation

_COMPLETION_TOKENS = 16  # OpenAI's default for /v1/completions


class Service:
    """A model with its tokenizer, its limits and its counters.

    Raises:
        RecipeError: the limits ask for more context than the model can hold, or leave no memory for an answer.
        LowdimError: memory is limited, and the backend does not know how much it takes.
    """

    def __init__(self, name: str, backend: Backend, tokenizer: Any, limits: Limits) -> None:
        if limits.context is not None and limits.context > backend.max_length:
            raise RecipeError(
                f"--context is {limits.context}, but the model holds {backend.max_length} tokens at most."
            )
        self.name, self.limits, self.created = name, limits, int(time.time())
        most = limits.context or backend.max_length
        self.context = _fitting(backend, most, limits.cache_memory)
        self._bound = "the cache's memory" if self.context < most else "the context"
        self._cache_bytes = backend.cache_bytes
        self.metrics = Metrics()
        self.scheduler = Scheduler(backend, limits, self.metrics)
        self._tokenizer, self._prompts = tokenizer, Prompts(tokenizer, backend.vocab_size)
        self._capacity = min(limits.choices, min(limits.concurrent, backend.slots) + limits.queue)

    def start(self) -> None:
        """Begin to serve, in the event loop that is running."""
        self.scheduler.start()

    async def stop(self) -> None:
        """End every answer and the threads."""
        await asyncio.to_thread(self.scheduler.stop)
        self._prompts.close()

    @property
    def is_healthy(self) -> bool:
        """Whether requests are taken."""
        return self.scheduler.state == RUNNING

    def describe(self) -> dict[str, Any]:
        """Return the model as ``/v1/models`` lists it."""
        return {"id": self.name, "object": "model", "created": self.created, "owned_by": "lowdim"}

    def check_model(self, name: str) -> None:
        """Refuse another model's name."""
        if name != self.name:
            message = f"The model {name!r} does not exist here; this server has {self.name!r}."
            raise ApiError(404, message, param="model", code="model_not_found")

    async def chat(self, body: ChatRequest) -> Answer:
        """Answer a conversation."""
        self._check(body, 1)
        prompt = await self._prompts.chat(body.messages)
        return self._answer(body, [prompt], ChatForm(), self.context, "messages")

    async def complete(self, body: CompletionRequest) -> Answer:
        """Continue texts."""
        self._check(body, len(body.prompt))
        prompts = [
            await self._prompts.text(prompt) if isinstance(prompt, str) else self._prompts.ids(prompt)
            for prompt in body.prompt
        ]
        return self._answer(body, prompts, TextForm(), _COMPLETION_TOKENS, "prompt")

    def _check(self, body: Generation, prompts: int) -> None:
        self.check_model(body.model)
        if prompts * body.choices > self._capacity:
            asked = f"{prompts} prompts with {body.choices} answers each" if prompts > 1 else f"n={body.choices}"
            raise ApiError(
                400,
                f"{asked} is more than the {self._capacity} answers that one request may ask for here.",
                param="n" if body.choices > 1 else "prompt",
            )

    def _answer(self, body: Generation, prompts: list[list[int]], form: Form, default: int, field: str) -> Answer:
        mailbox = Mailbox()
        jobs: list[Job] = []
        for prompt in prompts:
            most = self._most_tokens(body, len(prompt), default, field)
            for choice in range(body.choices):
                sampling = body.sampling(most, choice)
                memory = 0 if self.limits.cache_memory is None else self._cache_bytes(len(prompt) + most)
                jobs.append(Job(len(jobs), prompt, sampling, self._tokenizer, mailbox, memory))
        reply = Reply(form, self.name, body.wants_usage)
        count = sum(map(len, prompts))
        stream = bool(body.stream)
        return Answer(self.scheduler, jobs, mailbox, reply, count, stream, self.limits.timeout)

    def _most_tokens(self, body: Generation, prompt: int, default: int, field: str) -> int:
        """Return how many tokens an answer may have."""
        room, cap = self.context - prompt, self.limits.max_tokens
        wanted = body.max_tokens
        if wanted is not None and cap is not None and wanted > cap:
            raise ApiError(400, f"max_tokens is {wanted}, but this server gives at most {cap}.", param="max_tokens")
        if room < (wanted or 1):
            raise ApiError(
                400,
                f"{field}: {self._bound} holds {self.context} tokens, but the prompt has {prompt} and max_tokens asks "
                f"for {wanted or 'at least 1'}. Shorten the prompt or lower max_tokens.",
                param="max_tokens" if wanted and room > 0 else field,
                code="context_length_exceeded",
            )
        return wanted or min(default, room if cap is None else cap, room)


def _fitting(backend: Backend, context: int, memory: int | None) -> int:
    """Return how many tokens of one sequence fit into the context and into the memory of the cache."""
    if memory is None:
        return context
    if backend.cache_bytes(2) > memory:
        raise RecipeError(
            f"--cache-memory is {memory / 1e9:g} GB, but two tokens already take {backend.cache_bytes(2) / 1e9:g} GB. "
            "Give more."
        )
    return bisect_right(range(context + 1), memory, key=backend.cache_bytes) - 1
