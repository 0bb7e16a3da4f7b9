"""Whatever a request holds, it is answered or told what is wrong with it; a mistake of the client's is no 5xx."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.infer.serve.served import NAME, Served, serving
from tests.turns import turns

HEADERS = {"Content-Type": "application/json"}
ODD = st.sampled_from(
    [
        *(0, -0.0, 5e-324, 1e-320, 1e-60, 1e-46, 1e-40, 1e-38, 0.5, 1, 1.5, 2.0, 10, 1e38, 1e39, 1e308, -1, -1e-60),
        *(2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64 + 1, 10**30, 10**400, -(2**63), None, True, False),
        *("", "a", "\ud800", "\0", [], [""], ["a", "\udfff"], [0], [[]], [[1]], [None], {}, {"a": 1}, {"\ud800": None}),
    ]
)
FIELDS = st.sampled_from(
    [
        *("temperature", "top_p", "top_k", "repetition_penalty", "seed", "n", "stop", "stream", "stream_options"),
        *("max_tokens", "max_completion_tokens", "prompt", "messages", "model", "presence_penalty", "logit_bias"),
        *("frequency_penalty", "logprobs", "user", "metadata", "suffix", "tools", "response_format", "\ud800", ""),
    ]
)
NUMBERS = st.sampled_from(["temperature", "top_p", "top_k", "repetition_penalty", "presence_penalty", "seed"])
MESSAGE = st.dictionaries(st.sampled_from(["role", "content", "name", "tool_calls", "refusal", "\ud800"]), ODD)
quickly = settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])


def answer(client: httpx.Client, path: str, body: Any) -> httpx.Response:
    """Send a body as it is, lone surrogates included, and check the shape of what comes back."""
    found = client.post(path, content=json.dumps(body).encode(), headers=HEADERS)
    assert found.status_code in (200, 400, 404), (body, found.text)
    if found.status_code != 200:
        error = found.json()["error"]
        assert error["param"] or error["code"], (body, error)
        assert error["type"] == "invalid_request_error"
    return found


@pytest.fixture(scope="module")
def web(tiny: Any, tokenizer: Any) -> Any:
    with serving(tiny, tokenizer, max_tokens=4) as served, httpx.Client(base_url=served.base, timeout=60) as client:
        yield client
        assert client.get("/models").status_code == 200


@quickly
@given(st.dictionaries(FIELDS, ODD, max_size=4))
def test_completions_of_odd_requests(web: httpx.Client, odd: dict[str, Any]) -> None:
    answer(web, "/completions", {"model": NAME, "prompt": "a", "max_tokens": 2} | odd)


@quickly
@given(st.dictionaries(FIELDS, ODD, max_size=3), st.lists(MESSAGE, max_size=2))
def test_chats_of_odd_requests(web: httpx.Client, odd: dict[str, Any], turns: list[dict[str, Any]]) -> None:
    messages = [{"role": "user", "content": "a"} | turn for turn in turns]
    answer(web, "/chat/completions", {"model": NAME, "messages": messages, "max_tokens": 2} | odd)


@quickly
@given(NUMBERS, st.one_of(st.floats(allow_nan=False, allow_infinity=False), st.integers(-(2**70), 2**70)))
def test_every_number_is_answered_or_refused_by_the_name_of_its_field(web: httpx.Client, name: str, value: Any) -> None:
    found = answer(web, "/completions", {"model": NAME, "prompt": "ab", "max_tokens": 2, name: value})
    if found.status_code == 400:
        assert found.json()["error"]["param"] == name


@pytest.mark.parametrize("native", turns([True, False], of=2))
def test_values_that_fp32_lacks_mean_what_their_neighbours_mean(tiny: Any, tokenizer: Any, native: bool) -> None:
    def text(**fields: Any) -> str:
        found = served.post("/completions", {"model": NAME, "prompt": "ab", "max_tokens": 8, "seed": 5} | fields)
        assert found.status_code == 200, found.text
        return str(found.json()["choices"][0]["text"])

    served: Served
    with serving(tiny, tokenizer, native=native) as served:
        for cold in (5e-324, 1e-60, 1e-46, 1e-45, 1e-39):
            assert text(temperature=cold) == text(temperature=0)
            assert text(top_p=cold) == text(temperature=0)
            assert text(repetition_penalty=cold, temperature=0) == text(repetition_penalty=1e-30, temperature=0)
        for many in (2**31, 2**63 - 1, 2**63, 2**64 + 1, 10**30):
            assert text(top_k=many) == text()
