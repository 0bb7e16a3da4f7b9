"""Many clients at once, some of which vanish: nothing leaks, nothing mixes."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from typing import Any

import openai
import pytest
from tests.infer.serve.served import NAME, Served, needs_kernels, serving

CLIENTS = 24


def requests() -> list[dict[str, Any]]:
    """Different prompts (some longer than a chunk), seeds, lengths and settings; every third is greedy."""
    generator = random.Random(0)
    found = []
    for number in range(CLIENTS):
        prompt = "".join(generator.choices("abcdefgh ijkl.", k=generator.randint(3, 90)))
        settings = {"temperature": 0} if number % 3 == 1 else {"temperature": 1.2, "seed": number}
        if number % 4 == 0:
            settings |= {"top_p": 0.9, "extra_body": {"repetition_penalty": 1.2, "top_k": 40}}
        found.append({"model": NAME, "prompt": prompt, "max_tokens": generator.randint(5, 24)} | settings)
    return found


async def read(client: openai.AsyncOpenAI, request: dict[str, Any], pieces: int | None = None) -> str | None:
    """Stream an answer, or leave after some pieces of it."""
    text = ""
    async with await client.completions.create(**request, stream=True) as stream:
        async for chunk in stream:
            text += chunk.choices[0].text
            if pieces is not None:
                pieces -= 1
                if pieces == 0:
                    return None
    return text


async def whole(client: openai.AsyncOpenAI, request: dict[str, Any]) -> str:
    """Ask for an answer in one piece."""
    return (await client.completions.create(**request)).choices[0].text


async def leave(served: Served, request: dict[str, Any], stream: bool, seconds: float) -> None:
    """Ask, and hang up some seconds later without having read a byte."""
    _, writer = await asyncio.open_connection(*served.address)
    content = json.dumps(request | {"stream": stream}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n"
    writer.write(f"{head}Content-Type: application/json\r\n\r\n".encode() + content)
    await writer.drain()
    await asyncio.sleep(seconds)
    writer.close()
    await writer.wait_closed()


async def crowd(served: Served, wanted: list[dict[str, Any]]) -> list[str | None]:
    """Every third client leaves: midway through a stream, at once, or while it waits."""
    async with served.async_client() as client:
        asked: list[Any] = []
        for number, request in enumerate(wanted):
            if number % 3:
                asked.append(read(client, request) if number % 2 else whole(client, request))
            elif number % 4 == 0:
                asked.append(read(client, request | {"max_tokens": 30}, pieces=1 + number // 4))
            else:
                plain = {key: value for key, value in request.items() if key != "extra_body"}
                asked.append(leave(served, plain, number % 2 == 0, 0.01 * number))
        return await asyncio.gather(*asked)


def count_tasks(served: Served) -> int:
    async def count() -> int:
        return len(asyncio.all_tasks())

    return asyncio.run_coroutine_threadsafe(count(), served.server.loop).result(10)


@pytest.mark.parametrize(
    ("slots", "native"),
    [(3, False), pytest.param(24, True, marks=needs_kernels)],
    ids=["few slots, Transformers", "many slots, native"],
)
def test_a_crowd_gets_what_each_would_get_alone(tiny: Any, tokenizer: Any, slots: int, native: bool) -> None:
    wanted = requests()
    with serving(tiny, tokenizer, slots=slots, native=native) as served:
        client = served.client()
        alone = [client.completions.create(**request).choices[0].text for request in wanted]
        served.wait_idle()
        served.wait(lambda: not served.server.server_state.tasks)
        tasks = count_tasks(served)
        served.backend.pause = 0.002
        got = asyncio.run(crowd(served, wanted))
        for number, text in enumerate(got):
            assert number % 3 == 0 or text == alone[number], number
        assert sum(text is not None for text in got) >= 2 * CLIENTS // 3
        served.wait_idle()
        served.wait(lambda: count_tasks(served) <= tasks)
        served.wait(lambda: served.outcome("cancelled") > 0)
        assert served.backend.most_open <= slots
        assert max(served.backend.steps) > 1
        assert served.metric("lowdim_sequences_running") == served.metric("lowdim_sequences_queued") == 0
        again = [client.completions.create(**request).choices[0].text for request in wanted[:4]]
        assert again == alone[:4]


def test_a_long_prompt_does_not_hold_up_running_answers(tiny: Any, tokenizer: Any) -> None:
    """Between two chunks of the prompt every running answer gets a token."""
    calls: list[str] = []
    with serving(tiny, tokenizer, slots=2, chunk=8, pause=0.002) as served:
        stream = served.client().completions.create(model=NAME, prompt="a", max_tokens=90, stream=True, temperature=0)
        next(stream)
        served.backend.before_prefill = lambda ids: calls.append("prefill")
        served.backend.before_step = lambda tokens: calls.append("step")
        served.post("/completions", {"model": NAME, "prompt": "b" * 80, "max_tokens": 1})
        for _ in stream:
            pass
    first, last = calls.index("prefill"), len(calls) - calls[::-1].index("prefill")
    between = calls[first:last]
    assert between.count("prefill") == 10
    assert all(pair != ("prefill", "prefill") for pair in itertools.pairwise(between))
