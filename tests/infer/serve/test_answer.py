"""An answer towards clients that stop reading: bounded memory, an end in time."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Any

import pytest
from tests.infer.serve.served import NAME, Paced

from lowdim.infer.serve.gate import OUTCOME
from lowdim.infer.serve.limits import Limits
from lowdim.infer.serve.mailbox import Mailbox, Update
from lowdim.infer.serve.schema import CompletionRequest
from lowdim.infer.serve.service import Service

Message = MutableMapping[str, Any]


async def never() -> Message:
    await asyncio.Event().wait()
    raise AssertionError


def test_a_reader_that_stops_is_given_up_in_time_and_its_slot_is_free(tiny: Any, tokenizer: Any) -> None:
    async def stall() -> tuple[dict[str, Any], Paced]:
        backend, sent = Paced(tiny), 0
        backend.eos_ids = frozenset()
        service = Service(NAME, backend, tokenizer, Limits(timeout=0.3))
        service.start()

        async def send(message: Message) -> None:
            nonlocal sent
            sent += 1
            if sent > 3:
                await asyncio.Event().wait()

        scope: dict[str, Any] = {"type": "http"}
        body = CompletionRequest(model=NAME, prompt=["a"], max_tokens=100, stream=True)
        await asyncio.wait_for((await service.complete(body))(scope, never, send), 20)
        while service.scheduler.open:
            await asyncio.sleep(0.01)
        await service.stop()
        return scope, backend

    scope, backend = asyncio.run(stall())
    assert scope[OUTCOME] == "timed_out"
    assert backend.open_slots() == 0


def test_what_a_slow_reader_has_not_taken_is_one_update_for_each_answer() -> None:
    async def read() -> list[Update]:
        mailbox = Mailbox()
        for number in range(1000):
            mailbox.put(Update(number % 2, "x", 1, "length" if number > 997 else None))
        return await mailbox.take()

    assert asyncio.run(read()) == [Update(index, "x" * 500, 500, "length") for index in (0, 1)]


def test_the_first_failure_is_the_one_that_is_told() -> None:
    async def read() -> None:
        mailbox = Mailbox()
        mailbox.put(Update(0, "x", 1))
        mailbox.fail(KeyError("first"))
        mailbox.fail(KeyError("second"))
        await mailbox.take()

    with pytest.raises(KeyError, match="first"):
        asyncio.run(read())
