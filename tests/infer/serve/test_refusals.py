"""What the server does not do, it says: the right status, OpenAI's shape, the field at fault."""

from __future__ import annotations

import json
import re
import socket
from typing import Any

import httpx
import openai
import pytest
from tests.infer.serve.served import CONTEXT, NAME, Served, serving

TEXT: dict[str, Any] = {"model": NAME, "prompt": "a", "max_tokens": 2}
CHAT: dict[str, Any] = {"model": NAME, "messages": [{"role": "user", "content": "a"}], "max_tokens": 2}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}


def error(response: httpx.Response, status: int = 400) -> dict[str, Any]:
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    found: dict[str, Any] = body["error"]
    return found


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("logprobs", True),
        ("top_logprobs", 2),
        ("logit_bias", {"5": 1}),
        ("presence_penalty", 0.5),
        ("frequency_penalty", -0.5),
        ("response_format", {"type": "json_object"}),
        ("tools", [TOOL]),
        ("tool_choice", "required"),
        ("functions", [{"name": "f"}]),
        ("modalities", ["text", "audio"]),
        ("reasoning_effort", "high"),
        ("service_tier", "priority"),
        ("store", True),
        ("n", 0),
        ("n", 17),
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", "1"),
        ("temperature", True),
        ("top_p", 0),
        ("top_p", 1.5),
        ("top_k", -1),
        ("repetition_penalty", 0),
        ("seed", 1.5),
        ("seed", 2**63),
        ("stop", ["a"] * 5),
        ("stop", ""),
        ("stop[0]", [1]),
        ("stream", "yes"),
        ("stream_options", {"include_usage": True}),
        ("max_tokens", 0),
        ("max_tokens", 3.0),
        ("max_tokens", CONTEXT + 1),
        ("max_tokens", CONTEXT - 5),
        ("max_completion_tokens", 3),
        ("no_such_field", 1),
        ("model", 3),
        ("messages", []),
        ("messages", "hello"),
        ("messages[0].role", [{"role": "tool", "content": "a"}]),
        ("messages[0].content", [{"role": "user", "content": None}]),
        ("messages[0].content", [{"role": "user"}]),
        ("messages[0].content", [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]),
        ("messages[0].content", [{"role": "user", "content": [{"type": "text"}]}]),
        ("messages[0].tool_calls", [{"role": "assistant", "content": "", "tool_calls": [{"id": "x"}]}]),
        ("messages[0].tool_calls", [{"role": "assistant", "content": None, "tool_calls": [{"id": "x"}]}]),
        ("messages[0].tool_calls", [{"role": "assistant", "tool_calls": [{"id": "x"}]}]),
        ("messages[0].function_call", [{"role": "assistant", "content": None, "function_call": {"name": "f"}}]),
        ("messages[0].refusal", [{"role": "assistant", "content": None, "refusal": "no"}]),
        ("messages[0].audio", [{"role": "assistant", "audio": {"id": "x"}}]),
        ("messages[1].tool_call_id", [{"role": "user", "content": "a"}, {"role": "tool", "tool_call_id": "x"}]),
        ("messages[0].contents", [{"role": "user", "contents": "a"}]),
        ("messages[0].name", [{"role": "user", "content": "a", "name": 3}]),
        ("messages[0].name", [{"role": "user", "content": "a", "name": "\ud800"}]),
        ("stream_options", {"\ud800": 1}),
        ("\\ud800", 1),
        ("messages[0].\\ud800", [{"role": "user", "content": "a", "\ud800": 1}]),
        ("messages[0].content", [{"role": "user", "content": "\ud800"}]),
        ("messages", [{"role": "user", "content": "a" * 200}]),
    ],
)
def test_a_chat_is_refused_by_the_field_at_fault(served: Served, field: str, value: Any) -> None:
    name = field.partition("[")[0].partition(".")[0]
    body = json.dumps({**CHAT, name.replace("\\ud800", "\ud800"): value}).encode()
    headers = {"Content-Type": "application/json"}
    found = error(httpx.post(f"{served.base}/chat/completions", content=body, headers=headers))
    assert found["param"] == field
    assert re.search(rf"(^|\W){re.escape(name)}\W", found["message"])
    assert found["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("echo", True),
        ("best_of", 2),
        ("suffix", "end"),
        ("logprobs", 0),
        ("prompt", None),
        ("prompt", []),
        ("prompt", [1, "a"]),
        ("prompt", [[]]),
        ("prompt[0]", "\ud800"),
        ("prompt[1]", ["a", "\udfff"]),
        ("prompt[1]", [[1], [1, "a"]]),
        ("prompt[0]", [[1.5]]),
        ("prompt", [True]),
        ("prompt", [96]),
        ("prompt", [-1]),
        ("prompt", 5),
        ("prompt", ["a"] * 17),
        ("prompt", "a" * 127),
        ("messages", []),
    ],
)
def test_a_completion_is_refused_by_the_field_at_fault(served: Served, field: str, value: Any) -> None:
    found = error(sent(served, json.dumps({**TEXT, field.partition("[")[0]: value}).encode()))
    assert found["param"] == field or (field, found["param"]) == ("prompt", "max_tokens")
    assert field in found["message"]


def test_refusals_are_of_use(served: Served) -> None:
    unsupported = error(served.post("/chat/completions", {**CHAT, "logprobs": True}))
    assert unsupported["code"] == "unsupported_parameter"
    unknown = error(served.post("/chat/completions", {**CHAT, "temprature": 1}))
    assert unknown["code"] == "unknown_parameter"
    assert "Did you mean 'temperature'?" in unknown["message"]
    long = error(served.post("/completions", {**TEXT, "max_tokens": CONTEXT}))
    assert long["code"] == "context_length_exceeded"
    assert str(CONTEXT) in long["message"]


@pytest.mark.parametrize("body", [b"", b"[1, 2]", b'"text"', b"null"])
def test_a_body_that_is_no_object_of_json_is_refused(served: Served, body: bytes) -> None:
    assert error(sent(served, body))["message"].startswith("body: ")


def sent(served: Served, body: bytes) -> httpx.Response:
    return httpx.post(f"{served.base}/completions", content=body, headers={"Content-Type": "application/json"})


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"{", "character 1"),
        (b'{"a": }', "Expecting value, at character 6"),
        (b'{"a": 1,}', "character 8"),
        (b'{"a": 1} {}', "Extra data, at character 9"),
        (b'{"a": "\n"}', "control character, at character 7"),
        ('{"ä": "ö", b}'.encode(), "character 11"),
        (b'{"prompt": "caf\xe9"}', "not UTF-8: byte 0xe9 at position 15"),
        (b"\xff", "not UTF-8: byte 0xff at position 0"),
        (b'{"n": ' + b"1" * 5000 + b"}", "4300 digits"),
        (b'{"a":' * 100_000, "nested too deep"),
        (b"[" * 100_000, "nested too deep"),
    ],
    ids=str,
)
def test_a_body_that_cannot_be_read_says_why_and_where(served: Served, body: bytes, reason: str) -> None:
    found = error(sent(served, body))
    assert reason in found["message"]
    assert found["code"] == "invalid_json"


def test_a_number_that_json_does_not_have_is_refused(served: Served) -> None:
    for number in (b"NaN", b"1e999", b"-Infinity"):
        body = b'{"model": "tiny", "prompt": "a", "temperature": ' + number + b"}"
        assert error(sent(served, body))["param"] == "temperature"


def test_a_body_of_another_type_is_refused(served: Served) -> None:
    """A page in a browser can send plain text to any server without being asked, but not JSON."""
    response = httpx.post(f"{served.base}/completions", content=json.dumps(TEXT))
    assert "Content-Type: application/json" in error(response)["message"]


def test_another_model_path_or_method_is_refused(served: Served) -> None:
    found = error(served.post("/completions", {**TEXT, "model": "gpt-4"}), 404)
    assert (found["param"], found["code"]) == ("model", "model_not_found")
    assert NAME in found["message"]
    assert "/v1/embeddings" in error(served.post("/embeddings", {}), 404)["message"]
    error(served.get("/v1/completions"), 405)


def test_the_client_raises_its_own_classes(served: Served) -> None:
    client = served.client()
    with pytest.raises(openai.BadRequestError) as bad:
        client.completions.create(**{**TEXT, "logprobs": 3})
    assert (bad.value.param, bad.value.code) == ("logprobs", "unsupported_parameter")
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(**{**CHAT, "model": "other"})
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError):
        client.completions.create(**{**TEXT, "top_p": 7}, stream=True)


def test_a_model_without_chat_template_says_what_to_use_instead(tiny: Any, tokenizer: Any) -> None:
    import copy

    plain = copy.deepcopy(tokenizer)
    plain.chat_template = None
    with serving(tiny, plain) as served:
        found = error(served.post("/chat/completions", CHAT))
        assert found["code"] == "no_chat_template"
        assert "/v1/completions" in found["message"]
        assert served.post("/completions", TEXT).status_code == 200


def test_what_the_chat_template_refuses_is_the_requests_fault(served: Served) -> None:
    turns = [*CHAT["messages"], {"role": "system", "content": "late"}]
    found = error(served.post("/chat/completions", {**CHAT, "messages": turns}))
    assert "system comes first" in found["message"]


def test_the_servers_own_limit_of_tokens(tiny: Any, tokenizer: Any) -> None:
    with serving(tiny, tokenizer, max_tokens=5, context=64) as served:
        found = error(served.post("/completions", {**TEXT, "max_tokens": 6}))
        assert (found["param"], "at most 5" in found["message"]) == ("max_tokens", True)
        assert served.post("/completions", TEXT | {"max_tokens": None}).json()["usage"]["completion_tokens"] <= 5
        assert error(served.post("/completions", {**TEXT, "prompt": "a" * 64}))["code"] == "context_length_exceeded"


# ---------------------------------------------------------------- keys and hosts


def test_every_path_but_health_asks_for_the_key(tiny: Any, tokenizer: Any) -> None:
    with serving(tiny, tokenizer, keys=["first", "second"]) as served:
        for path in ("/v1/models", "/v1/models/tiny", "/metrics", "/nowhere", "/v1/completions"):
            found = error(served.get(path), 401)
            assert found["code"] == "invalid_api_key"
        assert served.get("/health").json() == {"status": "ok"}
        for key in ("first", "second"):
            assert served.client(key).completions.create(**TEXT).choices
        for key in ("third", "firs", "first ", "FIRST"):
            if key.strip() != "first":
                with pytest.raises(openai.AuthenticationError):
                    served.client(key).completions.create(**TEXT)
        basic = served.get("/metrics", headers={"Authorization": "Basic first"})
        assert basic.headers["www-authenticate"] == "Bearer"
        counted = served.get("/metrics", headers={"Authorization": "Bearer first"}).text
        assert 'outcome="unauthorized"' in counted


def test_without_a_key_only_names_of_this_machine_are_answered(served: Served, tiny: Any, tokenizer: Any) -> None:
    found = error(served.get("/v1/models", headers={"Host": "evil.example:80"}), 403)
    assert "--api-key-file" in found["message"]
    for host in ("evil.example", "127.0.0.1.evil.example:80", "192.0.2.1:8000", "0.0.0.0", "[2001:db8::1]:80", ""):
        assert served.get("/v1/models", headers={"Host": host}).status_code == 403, host
    for host in ("localhost", "LOCALHOST:8000", "127.0.0.1:1", "127.0.1.1:8000", "127.0.0.2", "[::1]:8000", "[::1]"):
        assert served.get("/v1/models", headers={"Host": host}).status_code == 200
    with serving(tiny, tokenizer, keys=["k"]) as other:
        headers = {"Host": "my.example", "Authorization": "Bearer k"}
        assert other.get("/v1/models", headers=headers).status_code == 200


def test_other_origins_are_not_allowed_in(served: Served) -> None:
    headers = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    answer = httpx.options(f"{served.base}/completions", headers=headers)
    assert not [name for name in answer.headers if name.startswith("access-control")]


# ---------------------------------------------------------------- size of the body


@pytest.mark.parametrize("size", [20_001, 3_000_000])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_beyond_the_limit_is_refused(tiny: Any, tokenizer: Any, size: int, chunked: bool) -> None:
    body = json.dumps(TEXT).encode().ljust(size)
    headers = {"Content-Type": "application/json"}
    with serving(tiny, tokenizer, body=20_000) as served, httpx.Client() as client:
        content: Any = iter([body[:10_000], body[10_000:]]) if chunked else body
        answer = client.post(f"{served.base}/completions", content=content, headers=headers)
        assert error(answer, 413)["code"] == "request_too_large"
        fits = client.post(f"{served.base}/completions", content=body[:20_000], headers=headers)
        assert fits.status_code == 200


def test_an_endless_body_is_cut_off_in_bounded_memory(tiny: Any, tokenizer: Any) -> None:
    import resource

    with serving(tiny, tokenizer, body=20_000) as served:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with socket.create_connection(served.address, timeout=30) as raw:
            head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
            raw.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode())
            chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
            sent = 0
            try:
                while sent < 300 * 2**20:
                    raw.sendall(chunk)
                    sent += len(chunk)
            except OSError:
                pass
        assert sent < 200 * 2**20
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60 * 1024
        assert served.get("/health").status_code == 200


def test_a_client_that_leaves_in_the_middle_of_its_body_is_forgotten(tiny: Any, tokenizer: Any) -> None:
    with serving(tiny, tokenizer) as served:
        with socket.create_connection(served.address) as raw:
            raw.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n"
                b"Content-Type: application/json\r\n\r\n{"
            )
        served.wait(lambda: served.outcome("cancelled") == 1)
        assert served.metric("lowdim_prompt_tokens_total") == 0
