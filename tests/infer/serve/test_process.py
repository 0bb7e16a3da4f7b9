"""``lowdim serve`` as users start and stop it."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import re
import shutil
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from tests import forked
from tests.infer.serve.served import needs_kernels
from typer.testing import CliRunner, Result

from lowdim.cli import app
from lowdim.cli.serve import _open
from lowdim.core.native import library
from lowdim.infer.decode.native_backend import NativeBackend
from lowdim.infer.decode.open import open_backend
from lowdim.infer.serve.limits import Limits
from lowdim.infer.sparse.linear import SparseLinear


@pytest.fixture(scope="module")
def directory(tiny: Any, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny-llama"
    tiny.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@contextlib.contextmanager
def started(*arguments: str | Path) -> Iterator[tuple[forked.Program, str, list[str]]]:
    """The program, the URL that it prints and all that it prints."""
    process = forked.Program(forked.lowdim, "serve", *arguments, "--port", "0")
    try:
        lines: list[str] = []
        for line in process.stderr:
            lines.append(line)
            if found := re.search(r"at (http://\S+/v1);", line):
                break
        else:
            raise AssertionError("".join(lines))
        reader = threading.Thread(target=lambda: lines.extend(process.stderr))
        reader.start()
        yield process, found[1], lines
        process.wait(30)
        reader.join()
    finally:
        process.kill()
        process.close()


def test_it_answers_until_it_is_told_to_stop(directory: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("secret\n")
    keys.chmod(0o600)
    with started(directory, "--api-key-file", keys, "--context", "64") as (process, base, lines):
        with openai.OpenAI(base_url=base, api_key="secret", max_retries=0) as client:
            wanted: dict[str, Any] = {"model": "tiny-llama", "prompt": "Hello", "max_tokens": 4, "seed": 1}
            assert client.completions.create(**wanted).usage.total_tokens <= 9  # type: ignore[union-attr]
            assert list(client.completions.create(**wanted, stream=True))
            assert client.chat.completions.create(
                model="tiny-llama", messages=[{"role": "user", "content": "?"}], max_tokens=2
            ).choices
            with pytest.raises(openai.AuthenticationError):
                client.with_options(api_key="wrong").completions.create(**wanted)
        process.send_signal(signal.SIGTERM)
    assert process.returncode == 0
    assert "Traceback" not in "".join(lines)


def test_ctrl_c_ends_it_with_130_while_a_stream_runs_to_its_end(directory: Path) -> None:
    wanted: dict[str, Any] = {"model": "mine", "prompt": "Hello", "max_tokens": 100, "temperature": 0}
    with (
        started(directory, "--name", "mine") as (process, base, lines),
        openai.OpenAI(base_url=base, api_key="none", max_retries=0) as client,
    ):
        stream = client.completions.create(**wanted, stream=True)
        chunks = [next(stream)]  # all of them, where the server ran ahead of this slow reader
        process.send_signal(signal.SIGINT)
        assert [*chunks, *stream][-1].choices[0].finish_reason in ("stop", "length")
    assert process.returncode == 130
    assert "The server has ended." in lines[-1]
    assert "Traceback" not in "".join(lines)


@pytest.mark.slow
def test_an_address_that_others_reach_is_warned_of_without_a_key(directory: Path) -> None:
    with started(directory, "--host", "0.0.0.0", "--threads", "1", "--dtype", "int8") as (
        process,
        base,
        lines,
    ):
        assert httpx.get(f"{base.removesuffix('/v1')}/health", headers={"Host": "other"}).status_code == 200
        process.send_signal(signal.SIGTERM)
    assert process.returncode == 0
    assert "there is no API key" in lines[0]


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["serve", *map(str, arguments)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dtype", "int9"], "int8"),
        (["--cache", "int9"], "Did you mean 'int8'"),
        (["--cache-memory", "0"], "--cache-memory"),
        (["--cache-memory", "nan"], "--cache-memory"),
        (["--max-concurrent", "0"], "--max-concurrent"),
        (["--queue", "-1"], "--queue"),
        (["--timeout", "0"], "--timeout"),
        (["--max-tokens", "0"], "--max-tokens"),
        (["--name", " "], "--name"),
        (["--name", "caf\udce9"], "--name is not UTF-8: byte 0xe9 at position 3"),
        (["--port", "70000"], "--port"),
        (["--threads", "0"], "--threads"),
        (["--api-key-file", "no-such-file"], "--api-key-file"),
        (["--api-key-file", "/dev/null"], "--api-key-file"),
    ],
)
def test_flags_are_checked_before_anything_is_loaded(arguments: list[str], message: str) -> None:
    done = invoke("no-such-model", *arguments)
    assert done.exit_code == 2
    assert message in done.output


def test_an_address_that_is_taken_is_refused_before_the_model_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = invoke("no-such-model", "--port", str(taken.getsockname()[1]))
    assert done.exit_code == 1
    assert "in use" in done.output


def test_a_context_that_the_model_does_not_hold_is_refused(directory: Path) -> None:
    done = invoke(directory, "--port", "0", "--context", "4096")
    assert done.exit_code == 2
    assert "128" in done.output


@needs_kernels
def test_an_answer_that_the_caches_memory_cannot_hold_is_refused(directory: Path, tiny: Any) -> None:
    room = NativeBackend(tiny, cache="fp32").cache_bytes(31) / 1e9
    with started(directory, "--cache", "fp32", "--cache-memory", f"{room:.9f}") as (process, base, _):
        asked = {"model": directory.name, "prompt": "a", "max_tokens": 3}
        assert httpx.post(f"{base}/completions", json=asked, timeout=120).status_code == 200
        refused = httpx.post(f"{base}/completions", json=asked | {"max_tokens": 120}, timeout=120)
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "context_length_exceeded")
        process.send_signal(signal.SIGTERM)
    too_little = invoke(directory, "--port", "0", "--cache-memory", "0.00001")
    assert too_little.exit_code == 2
    assert "two tokens already take" in too_little.output


def test_a_missing_extra_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "uvicorn" else find(name))
    done = invoke("no-such-model")
    assert done.exit_code == 1
    assert "uvicorn" in done.output
    assert "pip install 'lowdim[serve]'" in done.output


@pytest.mark.nightly
def test_the_built_in_model_on_the_native_engine() -> None:
    """Eight conversations at once, each with the text that it has alone: sums do not depend on the batch."""
    from concurrent.futures import ThreadPoolExecutor

    with started("builtin:smollm2-135m", "--dtype", "int8", "--context", "512") as (process, base, lines):
        with openai.OpenAI(base_url=base, api_key="none", max_retries=0) as client:

            def ask(number: int) -> str | None:
                answer = client.chat.completions.create(
                    model="smollm2-135m",
                    messages=[{"role": "user", "content": f"What is {number} plus {number}? " * (number + 1)}],
                    max_tokens=24 + number,
                    temperature=0 if number % 2 else 0.8,
                    seed=number,
                )
                assert answer.choices[0].finish_reason in ("stop", "length")
                return answer.choices[0].message.content

            alone = [ask(number) for number in range(8)]
            with ThreadPoolExecutor(8) as pool:
                together = list(pool.map(ask, range(8)))
        process.send_signal(signal.SIGTERM)
    assert together == alone
    assert len(set(alone)) > 4
    assert not [line for line in lines if "native engine does not run" in line]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_zeros_that_a_model_stores_are_skipped_here_too(
    directory: Path, tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    opened = []
    whole = open_backend

    def watched(model: Any, **how: Any) -> Any:
        opened.append((model, whole(model, **how)))
        return opened[-1][1]

    monkeypatch.setattr("lowdim.infer.decode.open.open_backend", watched)
    path = shutil.copytree(directory, tmp_path / dtype)
    pruned = copy.deepcopy(tiny).to(getattr(torch, dtype))
    for layer in (each for each in pruned.modules() if isinstance(each, torch.nn.Linear)):
        layer.weight.data[:, ::2] = 0
    pruned.save_pretrained(path)
    service = _open(str(path), None, None, "auto", "tiny", Limits(), False)
    service._prompts.close()
    ((model, engine),) = opened
    assert isinstance(model.model.layers[0].mlp.up_proj, SparseLinear)
    assert engine.name == ("native" if library() else "transformers")
