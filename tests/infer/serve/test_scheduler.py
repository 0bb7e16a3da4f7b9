"""Full queues, late answers, vanished clients, failures: each ends as it should and touches nobody else."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Sequence
from typing import Any

import httpx
import openai
import pytest
from tests.infer.serve.served import NAME, Served, serving

LONG: dict[str, Any] = {"model": NAME, "prompt": "a", "max_tokens": 100, "seed": 1, "temperature": 0}


def in_background(served: Served, body: dict[str, Any]) -> tuple[threading.Thread, list[httpx.Response]]:
    got: list[httpx.Response] = []
    thread = threading.Thread(target=lambda: got.append(served.post("/completions", body)))
    thread.start()
    return thread, got


def raw_request(served: Served, body: dict[str, Any]) -> socket.socket:
    """Send a request by hand, so that a test decides when to read and when to leave."""
    raw = socket.create_connection(served.address, timeout=20)
    content = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n"
    raw.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + content)
    return raw


@pytest.fixture
def endless(tiny: Any) -> Any:
    """The model with no token that ends a text."""
    import copy

    model = copy.deepcopy(tiny)
    model.config.eos_token_id = None
    model.generation_config.eos_token_id = None
    return model


def test_a_full_queue_sends_clients_away_and_loses_nobody_else(endless: Any, tokenizer: Any) -> None:
    with serving(endless, tokenizer, slots=1, queue=2, pause=0.005) as served:
        asked = []
        for count in range(1, 4):
            asked.append(in_background(served, LONG))
            served.wait(lambda count=count: served.service.scheduler.open == count)  # type: ignore[misc]
        assert served.metric("lowdim_sequences_running") == 1
        assert served.metric("lowdim_sequences_queued") == 2
        with pytest.raises(openai.RateLimitError) as full:
            served.client().completions.create(**LONG)
        assert full.value.code == "queue_full"
        assert int(full.value.response.headers["retry-after"]) > 0
        for thread, got in asked:
            thread.join()
            assert got[0].status_code == 200
        assert len({got[0].json()["choices"][0]["text"] for _, got in asked}) == 1
        assert served.post("/completions", LONG).status_code == 200
        assert (served.outcome("completed"), served.outcome("overloaded")) == (4, 1)


def test_a_request_is_queued_whole_or_not_at_all(endless: Any, tokenizer: Any) -> None:
    with serving(endless, tokenizer, slots=2, queue=1, pause=0.01) as served:
        assert served.post("/completions", LONG | {"n": 4}).status_code == 400
        raw = raw_request(served, LONG | {"n": 2})
        served.wait(lambda: served.service.scheduler.open == 2)
        assert served.post("/completions", LONG | {"n": 2}).status_code == 429
        assert served.service.scheduler.open == 2
        raw.close()
        served.wait_idle()
        assert served.post("/completions", LONG | {"n": 3, "max_tokens": 3}).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_takes_too_long_is_cut(endless: Any, tokenizer: Any, stream: bool) -> None:
    with serving(endless, tokenizer, slots=1, pause=0.02, timeout=0.3) as served:
        client = served.client()
        if stream:
            with pytest.raises(openai.APIError, match=r"0\.3 seconds"):
                list(client.completions.create(**LONG, stream=True))
        else:
            with pytest.raises(openai.InternalServerError) as late:
                client.completions.create(**LONG)
            assert (late.value.status_code, late.value.code) == (504, "timeout")
            assert late.value.response.headers["x-should-retry"] == "false"
        served.wait_idle()
        assert served.outcome("timed_out") == 1
        served.wait(lambda: served.post("/completions", LONG | {"max_tokens": 1}).status_code == 200)


def test_a_client_is_told_in_time_even_if_the_engine_hangs(endless: Any, tokenizer: Any) -> None:
    with serving(endless, tokenizer, slots=1, timeout=0.5) as served:
        go_on = threading.Event()
        served.backend.before_step = lambda tokens: go_on.wait(20) and None
        for _ in range(2):
            with pytest.raises(openai.InternalServerError, match=r"0\.5 seconds"):
                served.client().completions.create(**LONG)
        assert served.service.scheduler.open == 2
        go_on.set()
        served.wait_idle()
        served.wait(lambda: served.post("/completions", LONG | {"max_tokens": 1}).status_code == 200)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_slot(endless: Any, tokenizer: Any, stream: bool) -> None:
    with serving(endless, tokenizer, slots=1, pause=0.03) as served:
        raw = raw_request(served, LONG | {"stream": stream})
        served.wait(lambda: len(served.backend.steps) > 3)
        raw.close()
        served.wait_idle()
        assert len(served.backend.steps) < 99
        served.wait(lambda: served.outcome("cancelled") == 1)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_while_it_waits_frees_its_place(endless: Any, tokenizer: Any, stream: bool) -> None:
    with serving(endless, tokenizer, slots=1, queue=1, pause=0.03) as served:
        running = raw_request(served, LONG)
        served.wait(lambda: served.service.scheduler.open == 1)
        waiting = raw_request(served, LONG | {"stream": stream})
        served.wait(lambda: served.service.scheduler.open == 2)
        waiting.close()
        served.wait(lambda: served.service.scheduler.open == 1)
        assert served.backend.open_slots() == 1
        assert b"200 OK" in running.recv(100)
        running.close()


def test_a_client_that_stops_reading_costs_others_nothing(endless: Any, tokenizer: Any) -> None:
    with serving(endless, tokenizer, slots=2) as served:
        raw = raw_request(served, LONG | {"stream": True, "n": 2})
        assert raw.recv(20)
        for _ in range(3):
            assert served.post("/completions", LONG).status_code == 200
        served.wait_idle()
        raw.close()


def test_a_prompt_that_fails_is_its_clients_alone(endless: Any, tokenizer: Any, caplog: Any) -> None:
    def fail(ids: Sequence[int]) -> None:
        if len(ids) == 7:
            raise MemoryError("no room for this one")

    with serving(endless, tokenizer, slots=2, pause=0.005) as served:
        served.backend.before_prefill = fail
        other, got = in_background(served, LONG)
        served.wait(lambda: len(served.backend.steps) > 3)
        with pytest.raises(openai.InternalServerError) as failed:
            served.client().completions.create(**LONG | {"prompt": "seven77"})
        assert (failed.value.status_code, failed.value.code) == (500, "internal_error")
        assert "no room" not in str(failed.value)
        other.join()
        assert got[0].status_code == 200
        served.wait_idle()
        assert served.get("/health").status_code == 200
    assert "no room for this one" in caplog.text


def test_broken_numbers_fail_their_own_request(endless: Any, tokenizer: Any) -> None:
    with serving(endless, tokenizer, slots=2) as served:
        step = served.backend.step

        def broken(slots: Sequence[int], tokens: Sequence[int]) -> Any:
            logits = step(slots, tokens).copy()
            logits[[token == 40 for token in tokens]] = float("nan")
            return logits

        served.backend.step = broken  # type: ignore[method-assign]
        served.backend.eos_ids = frozenset()
        statuses = [
            served.post("/completions", LONG | {"prompt": "x", "temperature": 2, "seed": seed}).status_code
            for seed in range(6)
        ]
        assert set(statuses) <= {200, 500}
        assert 500 in statuses
        served.wait_idle()
        assert served.get("/health").status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_that_fails_fails_all_and_says_so(endless: Any, tokenizer: Any, stream: bool, caplog: Any) -> None:
    def fail(tokens: Sequence[int]) -> None:
        if len(served.backend.steps) > 5:
            raise RuntimeError("the kernel is gone")

    with serving(endless, tokenizer, slots=1, pause=0.005) as served:
        served.backend.before_step = fail
        waiting, got = in_background(served, LONG)
        if stream:
            with pytest.raises(openai.APIError, match="internal error"):
                list(served.client().completions.create(**LONG, stream=True))
        else:
            with pytest.raises(openai.InternalServerError) as failed:
                served.client().completions.create(**LONG)
            assert failed.value.status_code == 500
        waiting.join()
        assert got[0].status_code == 500
        health = served.get("/health")
        assert (health.status_code, health.json()) == (503, {"status": "failed"})
        after = served.post("/completions", LONG)
        assert (after.status_code, after.json()["error"]["code"]) == (503, "unavailable")
    assert "the kernel is gone" in caplog.text


def test_the_end_of_a_server_is_proper_for_streams_that_run(endless: Any, tokenizer: Any) -> None:
    with serving(endless, tokenizer, slots=1, pause=0.1, grace=1.5) as served:
        stream = served.client().completions.create(**LONG, stream=True)
        next(stream)
        waiting, got = in_background(served, LONG)
        served.wait(lambda: served.service.scheduler.open == 2)
        served.server.end()
        served.wait(lambda: not served.service.is_healthy)
        health, refused = served.get("/health"), served.post("/completions", LONG)
        assert (health.status_code, health.json()) == (503, {"status": "shutting down"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "unavailable")
        with pytest.raises(openai.APIError, match="shutting down"):
            list(stream)
        waiting.join()
        assert got[0].status_code == 503
        served.thread.join(60)
        assert not served.thread.is_alive()


def test_probes_see_that_it_shuts_down(endless: Any, tokenizer: Any) -> None:
    def probed(method: str) -> list[int]:
        paths = ("/health", "/v1/models", "/v1/models/tiny", "/metrics")
        with httpx.Client(base_url=served.base.removesuffix("/v1")) as web:
            return [web.request(method, path).status_code for path in paths]

    with serving(endless, tokenizer, slots=1, pause=0.1, grace=60) as served:
        stream = served.client().completions.create(**LONG, stream=True)
        next(stream)
        assert probed("HEAD") == [200] * 4
        served.server.end()
        served.wait(lambda: not served.service.is_healthy)
        assert probed("HEAD") == probed("GET") == [503, 503, 503, 200]
        served.server.end()
        with pytest.raises(openai.APIError, match="shutting down"):
            list(stream)


def test_a_second_signal_waits_for_nobody(endless: Any, tokenizer: Any) -> None:
    with serving(endless, tokenizer, slots=1, pause=0.05, grace=60) as served:
        stream = served.client().completions.create(**LONG, stream=True)
        next(stream)
        served.server.end()
        served.server.end()
        with pytest.raises(openai.APIError, match="shutting down"):
            list(stream)
        served.thread.join(60)
        assert not served.thread.is_alive()


def test_answers_that_fit_into_the_grace_are_completed(endless: Any, tokenizer: Any) -> None:
    with serving(endless, tokenizer, slots=1, pause=0.005, grace=60) as served:
        stream = served.client().completions.create(**LONG, stream=True)
        pieces = [next(stream)]
        served.server.end()
        pieces += list(stream)
        assert pieces[-1].choices[0].finish_reason == "length"
        served.thread.join(60)
        assert not served.thread.is_alive()
