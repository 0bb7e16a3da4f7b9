from __future__ import annotations

from typing import Any

import pytest
from tests.infer.serve.served import NAME, Paced, needs_kernels, serving

from lowdim.cli import serve
from lowdim.core.errors import LowdimError, RecipeError
from lowdim.infer.serve.limits import Limits
from lowdim.infer.serve.service import Service


@pytest.mark.parametrize(
    ("limit", "value", "flag"),
    [
        ("concurrent", 0, "--max-concurrent"),
        ("queue", -1, "--queue"),
        ("max_tokens", 0, "--max-tokens"),
        ("context", 1, "--context"),
        ("timeout", 0.0, "--timeout"),
        ("timeout", float("inf"), "--timeout"),
        ("timeout", float("nan"), "--timeout"),
        ("grace", -1.0, "grace"),
        ("body", 0, "body"),
        ("cache_memory", 0, "--cache-memory"),
    ],
)
def test_a_limit_out_of_bounds_is_refused_by_its_flag(limit: str, value: Any, flag: str) -> None:
    with pytest.raises(RecipeError, match=flag):
        Limits(**{limit: value})


def test_more_context_than_the_model_holds_is_refused(tiny: Any, tokenizer: Any) -> None:
    with pytest.raises(RecipeError, match="--context is 129, but the model holds 128"):
        Service(NAME, Paced(tiny), tokenizer, Limits(context=129))


@needs_kernels
@pytest.mark.parametrize("cache", ["fp32", "int8"])
def test_the_context_is_what_the_caches_memory_holds(tiny: Any, tokenizer: Any, cache: str) -> None:
    backend = Paced(tiny, native=True, cache=cache)
    for tokens in (2, 100, 128):
        limits = Limits(cache_memory=backend.cache_bytes(tokens))
        held = Service(NAME, backend, tokenizer, limits).context
        assert tokens <= held <= 128
        assert backend.cache_bytes(held) <= backend.cache_bytes(tokens)
        assert held == 128 or backend.cache_bytes(held + 1) > backend.cache_bytes(tokens)
    with pytest.raises(RecipeError, match=r"--cache-memory is .* two tokens already take"):
        Service(NAME, backend, tokenizer, Limits(cache_memory=backend.cache_bytes(1) - 1))


def test_memory_that_nobody_counts_is_refused(tiny: Any, tokenizer: Any) -> None:
    with pytest.raises(LowdimError, match="native engine alone"):
        Service(NAME, Paced(tiny), tokenizer, Limits(cache_memory=1 << 30))


@needs_kernels
@pytest.mark.parametrize(("share", "bound"), [(0.5, True), (1.0, True), (1.3, False), (None, False)])
def test_what_is_free_bounds_the_caches_memory_unless_all_fits(
    tiny: Any, share: float | None, bound: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    backend = Paced(tiny, native=True)
    free = None if share is None else int(share * 4 * backend.cache_bytes(backend.max_length))
    monkeypatch.setattr(serve, "free_memory", lambda: free)
    room = serve._room(backend, 4)
    assert room == (int(0.8 * free) if bound and free else None)
    assert ("--cache-memory sets another bound" in " ".join(capsys.readouterr().err.split())) == bound


@needs_kernels
def test_answers_share_the_caches_memory(tiny: Any, tokenizer: Any) -> None:
    import copy
    from concurrent.futures import ThreadPoolExecutor

    endless = copy.deepcopy(tiny)
    endless.config.eos_token_id = endless.generation_config.eos_token_id = None
    asked: dict[str, Any] = {"model": NAME, "prompt": "a", "max_tokens": 30, "temperature": 0}
    room = Paced(endless, native=True, cache="fp32").cache_bytes(31)
    assert room < Paced(endless, native=True, cache="fp32").cache_bytes(120)
    with serving(endless, tokenizer, slots=4, pause=0.002, native=True, cache="fp32", cache_memory=2 * room) as served:
        with ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(lambda _: served.post("/completions", asked), range(6)))
        assert [answer.status_code for answer in answers] == [200] * 6
        assert served.backend.most_open == 2
    with serving(endless, tokenizer, slots=4, native=True, cache="fp32", cache_memory=room) as served:
        refused = served.post("/completions", asked | {"max_tokens": 120})
        assert refused.status_code == 400
        assert refused.json()["error"]["code"] == "context_length_exceeded"
        assert "the cache's memory holds" in refused.json()["error"]["message"]
        assert not served.backend.steps
        assert served.post("/completions", asked).status_code == 200
