"""What users meet: the official client against a real server."""

from __future__ import annotations

import asyncio
import copy
from typing import Any

import openai
import pytest
from tests.infer.serve.served import NAME, Served, serving

from lowdim.infer.decode.generate import generate
from lowdim.infer.decode.hf_backend import HFBackend
from lowdim.infer.decode.prompt import encode_text
from lowdim.infer.decode.sampling import Sampling

CHAT: list[Any] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who are you?"}]
TEMPLATED = "[system]Be brief.\n[user]Who are you?\n[assistant]"


@pytest.fixture(scope="module")
def client(served: Served) -> openai.OpenAI:
    return served.client()


def expected(model: Any, tokenizer: Any, prompt: str, **sampling: Any) -> tuple[str, str | None]:
    """What the library gives for a prompt, without a server."""
    pieces = list(generate(HFBackend(model), tokenizer, tokenizer(prompt)["input_ids"], Sampling(**sampling)))
    return "".join(piece.text for piece in pieces), pieces[-1].finish_reason


def test_a_chat_is_the_templated_prompt_continued(client: Any, tiny: Any, tokenizer: Any) -> None:
    answer = client.chat.completions.create(model=NAME, messages=CHAT, max_tokens=12, temperature=0)
    text, finish = expected(tiny, tokenizer, TEMPLATED, max_tokens=12)
    choice = answer.choices[0]
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", text, finish)
    assert (answer.object, answer.model) == ("chat.completion", NAME)
    assert answer.usage.prompt_tokens == len(TEMPLATED)
    assert answer.usage.total_tokens == len(TEMPLATED) + answer.usage.completion_tokens


def test_a_stream_of_chunks_is_the_same_answer(client: Any) -> None:
    wanted: dict[str, Any] = {"model": NAME, "messages": CHAT, "max_completion_tokens": 12, "seed": 3}
    whole = client.chat.completions.create(**wanted)
    chunks = list(client.chat.completions.create(**wanted, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert all(c.usage is None for c in chunks[:-1])
    assert len({c.id for c in chunks}) == 1


def test_a_stream_without_options_has_no_usage(client: Any) -> None:
    chunks = list(client.chat.completions.create(model=NAME, messages=CHAT, max_tokens=3, stream=True))
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)


def test_the_asynchronous_client_gets_the_same(served: Served) -> None:
    async def ask() -> tuple[str, str]:
        wanted: dict[str, Any] = {"model": NAME, "messages": CHAT, "max_tokens": 12, "seed": 5}
        async with served.async_client() as client:
            whole = await client.chat.completions.create(**wanted)
            stream = await client.chat.completions.create(**wanted, stream=True)
            return whole.choices[0].message.content, "".join(
                [chunk.choices[0].delta.content or "" async for chunk in stream]
            )

    whole, streamed = asyncio.run(ask())
    assert whole == streamed != ""


def test_a_completion_of_text_and_of_its_tokens(client: Any, tiny: Any, tokenizer: Any) -> None:
    text, finish = expected(tiny, tokenizer, "Once upon", max_tokens=16)
    for prompt in ("Once upon", tokenizer("Once upon")["input_ids"]):
        answer = client.completions.create(model=NAME, prompt=prompt, temperature=0)
        assert (answer.choices[0].text, answer.choices[0].finish_reason) == (text, finish)
    assert answer.object == "text_completion"
    assert answer.usage.prompt_tokens == 9


@pytest.mark.parametrize("prompts", [["ab", "xyz"], [[10, 11], [30, 31, 32]]], ids=["texts", "tokens"])
def test_each_prompt_has_its_answers_in_order(client: Any, prompts: list[Any]) -> None:
    together = client.completions.create(model=NAME, prompt=prompts, n=2, seed=7, max_tokens=6)
    assert [choice.index for choice in together.choices] == [0, 1, 2, 3]
    assert together.usage.prompt_tokens == 5
    for number, prompt in enumerate(prompts):
        for choice in range(2):
            alone = client.completions.create(model=NAME, prompt=prompt, seed=7 + choice, max_tokens=6)
            assert together.choices[2 * number + choice].text == alone.choices[0].text


def test_several_answers_stream_side_by_side(client: Any) -> None:
    wanted: dict[str, Any] = {"model": NAME, "prompt": "ab", "n": 3, "seed": 1, "max_tokens": 8}
    texts = ["", "", ""]
    ends: list[Any] = [None] * 3
    for chunk in client.completions.create(**wanted, stream=True):
        (choice,) = chunk.choices
        texts[choice.index] += choice.text
        ends[choice.index] = choice.finish_reason
    whole = client.completions.create(**wanted)
    assert texts == [choice.text for choice in whole.choices]
    assert ends == [choice.finish_reason for choice in whole.choices]
    assert len(set(texts)) == 3


def test_stop_strings_end_the_text_before_them(client: Any, tiny: Any, tokenizer: Any) -> None:
    text, _ = expected(tiny, tokenizer, "stop", max_tokens=20)
    for stop in (text[4:6], ["never comes", text[4:6]]):
        answer = client.completions.create(model=NAME, prompt="stop", max_tokens=20, temperature=0, stop=stop)
        assert answer.choices[0].text == text[: text.index(text[4:6])]
        assert answer.choices[0].finish_reason == "stop"


def test_sampling_settings_reach_the_sampler(client: Any, tiny: Any, tokenizer: Any) -> None:
    settings: dict[str, Any] = {"temperature": 0.7, "top_p": 0.8, "seed": 11, "max_tokens": 16}
    extra: dict[str, Any] = {"top_k": 20, "repetition_penalty": 1.3}
    answer = client.completions.create(model=NAME, prompt="draw", **settings, extra_body=extra)
    assert answer.choices[0].text == expected(tiny, tokenizer, "draw", **settings, **extra)[0]


def test_the_temperature_is_one_and_seeds_differ_unless_given(client: Any, tiny: Any, tokenizer: Any) -> None:
    given = client.completions.create(model=NAME, prompt="x", seed=2)
    assert given.choices[0].text == expected(tiny, tokenizer, "x", temperature=1.0, seed=2, max_tokens=16)[0]
    drawn = {client.completions.create(model=NAME, prompt="x").choices[0].text for _ in range(4)}
    assert len(drawn) > 1


def test_a_chat_without_limit_fills_the_context_at_most(client: Any) -> None:
    answer = client.chat.completions.create(model=NAME, messages=[{"role": "user", "content": "?"}], seed=1)
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage.total_tokens <= 128


def test_messages_come_in_all_forms_that_ask_for_text_alone(client: Any) -> None:
    plain = client.chat.completions.create(model=NAME, messages=CHAT, seed=1, max_tokens=5)
    parts = [{"type": "text", "text": "Who are"}, {"type": "text", "text": " you?"}]
    other: list[Any] = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}]
    same = client.chat.completions.create(model=NAME, messages=other, seed=1, max_tokens=5)
    assert same.choices[0].message.content == plain.choices[0].message.content
    again = [*CHAT, plain.choices[0].message.model_dump(), {"role": "user", "content": "Go on"}]
    assert client.chat.completions.create(model=NAME, messages=again, max_tokens=2).choices


def test_names_of_the_speakers_are_accepted_and_reach_the_template(client: Any, tiny: Any, tokenizer: Any) -> None:
    named: list[Any] = [turn | {"name": "ann"} for turn in CHAT]
    wanted: dict[str, Any] = {"model": NAME, "max_tokens": 8, "seed": 1}
    plain = client.chat.completions.create(messages=CHAT, **wanted).choices[0].message.content
    assert client.chat.completions.create(messages=named, **wanted).choices[0].message.content == plain
    telling = copy.deepcopy(tokenizer)
    telling.chat_template = "{% for m in messages %}{{ m.name or m.role }}:{{ m.content }}{% endfor %}"
    with serving(tiny, telling) as served:
        answer = served.client().chat.completions.create(messages=[named[0], CHAT[1]], **wanted)
        assert answer.usage.prompt_tokens == len("ann:Be brief.user:Who are you?")  # type: ignore[union-attr]


TURN = {"content": "x", "role": "user"}
LANGCHAIN = [
    {"stream": False, "messages": [{"content": "s", "name": "sys", "role": "system"}, TURN | {"name": "ann"}]},
    {"stream": False, "messages": [TURN, {"content": "hi", "name": "bot", "role": "assistant"}, TURN]},
    {"stream": True, "messages": [TURN], "stream_options": {"include_usage": True}},
    {"stream": False, "messages": [{"content": [{"type": "text", "text": "go on"}], "role": "user"}], "stop": ["x"]},
    {
        "stream": False,
        "messages": [TURN],
        "frequency_penalty": 0.0,
        "logprobs": False,
        "n": 2,
        "seed": 1,
        "max_completion_tokens": 5,
        "presence_penalty": 0.0,
        "stop": ["a"],
        "temperature": 0.2,
        "top_p": 0.9,
    },
    {
        "prompt": ["x"],
        "frequency_penalty": 0,
        "logprobs": None,
        "n": 1,
        "presence_penalty": 0,
        "seed": None,
        "max_tokens": 25,
        "temperature": 0.7,
        "top_p": 1,
    },
]


@pytest.mark.parametrize("body", LANGCHAIN, ids=range(len(LANGCHAIN)))
def test_requests_as_langchain_sends_them_are_answered(served: Served, body: dict[str, Any]) -> None:
    answer = served.post("/chat/completions" if "messages" in body else "/completions", {"model": NAME} | body)
    assert answer.status_code == 200, answer.text


def test_an_empty_prompt_begins_a_text_as_it_does_for_generate(client: Any, tiny: Any, tokenizer: Any) -> None:
    begun = list(generate(HFBackend(tiny), tokenizer, encode_text(tokenizer, ""), Sampling(max_tokens=8)))
    answer = client.completions.create(model=NAME, prompt=["", "a"], max_tokens=8, temperature=0)
    assert answer.choices[0].text == "".join(piece.text for piece in begun) != answer.choices[1].text
    assert answer.usage.prompt_tokens == 2
    endless = copy.deepcopy(tokenizer)
    endless.bos_token = None
    with serving(tiny, endless) as served, pytest.raises(openai.BadRequestError, match="prompt is empty") as refused:
        served.client().completions.create(model=NAME, prompt="")
    assert refused.value.param == "prompt"


@pytest.mark.parametrize("path", ["/health", "/v1/models", f"/v1/models/{NAME}", "/metrics", "/v1/models/other"])
def test_head_is_get_without_the_body(served: Served, path: str) -> None:
    head, whole = served.head(path), served.get(path)
    assert head.status_code == whole.status_code == (404 if path.endswith("other") else 200)
    assert head.headers["content-type"] == whole.headers["content-type"]
    assert (head.content, bool(whole.content)) == (b"", True)


def test_what_is_harmless_or_asks_for_nothing_is_accepted(client: Any) -> None:
    plain = client.completions.create(model=NAME, prompt="a", seed=1)
    full = client.completions.create(
        model=NAME, prompt="a", seed=1, user="ann", echo=False, best_of=1, frequency_penalty=0,
        presence_penalty=0.0, logit_bias={}, logprobs=None, suffix=None,
    )  # fmt: skip
    assert full.choices[0].text == plain.choices[0].text
    client.chat.completions.create(
        model=NAME, messages=CHAT, max_tokens=1, n=1, logprobs=False, tools=[], tool_choice="none",
        response_format={"type": "text"}, store=False, metadata={"a": "b"}, service_tier="auto",
    )  # fmt: skip


def test_models_are_listed_and_described(client: Any) -> None:
    assert [model.id for model in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).owned_by == "lowdim"
    with pytest.raises(openai.NotFoundError, match="no-such"):
        client.models.retrieve("no-such/model")


def test_tokens_and_outcomes_are_counted(tiny: Any, tokenizer: Any) -> None:
    with serving(tiny, tokenizer) as served:
        answer = served.client().completions.create(model=NAME, prompt="count", max_tokens=9, seed=1)
        served.post("/completions", {})
        assert served.metric("lowdim_prompt_tokens_total") == 5
        assert served.metric("lowdim_generated_tokens_total") == answer.usage.completion_tokens
        assert served.metric("lowdim_time_to_first_token_seconds_count") == 1
        per_token = served.metric("lowdim_time_per_output_token_seconds_count")
        assert per_token == answer.usage.completion_tokens - 1
        assert (served.outcome("completed"), served.outcome("refused")) == (1, 1)
        assert served.metric("lowdim_sequences_running") == served.metric("lowdim_sequences_queued") == 0
