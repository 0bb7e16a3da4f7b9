from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests import forked
from typer.testing import CliRunner

from lowdim.cli import app
from lowdim.core import native


def words(done: object) -> str:
    """The text that was generated, without the line's end."""
    output: str = done.stdout  # type: ignore[attr-defined]
    assert output.endswith("\n")
    return output[:-1]


def test_the_text_is_that_of_transformers(run, model: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    prompt = tokenizer("abc. ", return_tensors="pt").input_ids
    peer = AutoModelForCausalLM.from_pretrained(model)
    expected = peer.generate(prompt, max_new_tokens=30, do_sample=False, pad_token_id=0)[0, prompt.shape[1] :]
    done = run("generate", model, "abc. ", "--max-tokens", "30")
    assert done.exit_code == 0, done.output
    assert words(done) == tokenizer.decode(expected, skip_special_tokens=True)


@pytest.mark.skipif(native.library() is None, reason="no compiled kernels")
def test_the_summary_names_engine_kernels_and_speeds(run, model: Path) -> None:
    done = run("generate", model, "abc", "--max-tokens", "9", "--threads", "1")
    assert re.search(
        r"native engine; \w+ kernels, 1 thread; prompt 3 tokens at [\d.]+ tokens/s; \d tokens at [\d.]+ tokens/s; "
        r"ended by length",
        done.stderr,
    )
    rounded = run("generate", model, "abc", "--max-tokens", "9", "--cache", "int4")
    assert "native engine, cache in int4; " in rounded.stderr
    quiet = run("generate", model, "abc", "--max-tokens", "9", "--quiet")
    assert quiet.stderr == ""
    assert quiet.stdout == done.stdout


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8", "int4"])
def test_a_pruned_model_in_every_dtype(run, pruned: Path, dtype: str) -> None:
    done = run("generate", pruned, "abc", "--max-tokens", "5", "--dtype", dtype)
    assert done.exit_code == 0, done.output
    assert len(words(done)) > 0


def test_a_packed_model_says_what_the_dense_one_says(run, pruned: Path, tmp_path: Path) -> None:
    assert run("convert", pruned, tmp_path / "packed", "--storage", "packed").exit_code == 0
    texts = {words(run("generate", path, "abc", "--max-tokens", "20")) for path in (pruned, tmp_path / "packed")}
    assert len(texts) == 1


def test_a_prompt_from_stdin(model: Path) -> None:
    arguments = ["generate", str(model), "--max-tokens", "8", "--quiet"]
    given = CliRunner().invoke(app, [*arguments, "-"], input="some text")
    assert given.exit_code == 0, given.output
    assert given.stdout == CliRunner().invoke(app, [*arguments, "some text"]).stdout


BYTES = [
    (b"caf\xe9", "byte 0xe9 at position 3"),
    ("ä".encode() + b"\xff", "byte 0xff at position 2"),
    ("é".encode("utf-16"), "byte 0xff at position 0"),
    (b"cut \xe2\x82", "byte 0xe2 at position 4"),
    (b"\xed\xa0\x80", "byte 0xed at position 0"),
    (b"a" * 100_000 + b"\x80", "byte 0x80 at position 100000"),
]


@pytest.mark.parametrize(("given", "problem"), BYTES, ids=str)
def test_a_prompt_of_other_bytes_than_utf8_names_the_first_and_its_place(given: bytes, problem: str) -> None:
    done = CliRunner().invoke(app, ["generate", "no-such-model", "-"], input=given)
    assert done.exit_code == 2
    assert problem in " ".join(done.stderr.split())
    if b"\0" not in given:
        argument = given.decode("utf-8", "surrogateescape")  # as Python hands it over
        for words in ([argument], ["a", "--chat", "--system", argument], ["a", "--stop", argument]):
            done = CliRunner().invoke(app, ["generate", "no-such-model", *words])
            assert done.exit_code == 2
            assert problem in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (f"'{os.fsdecode(bytes([0xE9]))}'", "PROMPT is not UTF-8: byte 0xe9 at position 0"),
        ("- <&-", "stdin is closed"),
        ("- < <(printf 'a\\xe9')", "stdin is not UTF-8: byte 0xe9 at position 1"),
    ],
)
def test_what_a_shell_can_do_to_a_prompt(words: str, problem: str) -> None:
    command = f"{sys.executable} -m lowdim generate no-such-model {words}"
    done = subprocess.run(["bash", "-c", os.fsencode(command)], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert problem in done.stderr
    assert "Traceback" not in done.stderr


def test_a_prompt_may_hold_any_character(run, model: Path) -> None:
    for prompt in ("a\0b", "\u2028", "\U0001f600", "\r\n"):
        done = CliRunner().invoke(app, ["generate", str(model), "-", "--max-tokens", "2", "-q"], input=prompt.encode())
        assert done.exit_code == 0, done.output


def test_a_seed_makes_the_text(run, model: Path) -> None:
    flags = [
        "--temperature",
        "1",
        "--top-k",
        "40",
        "--top-p",
        "0.9",
        "--repetition-penalty",
        "1.1",
        "--max-tokens",
        "20",
    ]
    texts = [words(run("generate", model, "abc", *flags, "--seed", seed)) for seed in ("1", "1", "2")]
    assert texts[0] == texts[1] != texts[2]


def test_stop_strings_end_the_text(run, model: Path) -> None:
    text = words(run("generate", model, "abc", "--max-tokens", "20"))
    done = run("generate", model, "abc", "--max-tokens", "20", "--stop", text[9:11], "--stop", "never to be seen")
    assert words(done) == text[: text.index(text[9:11])]
    assert "ended by stop" in done.stderr


def test_a_chat_uses_the_template(run, model: Path, tmp_path: Path) -> None:
    import shutil

    from transformers import AutoTokenizer

    chatty = shutil.copytree(model, tmp_path / "chatty")
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}bot:"
    tokenizer.save_pretrained(chatty)
    flags = ["--max-tokens", "8", "--quiet"]
    asked = run("generate", chatty, "who?", "--chat", "--system", "be brief", *flags)
    assert asked.exit_code == 0, asked.output
    assert asked.stdout == run("generate", model, "system: be brief\nuser: who?\nbot:", *flags).stdout


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--dtype", "int9"], "Did you mean 'int"),
        (["--cache", "int9"], "Did you mean 'int"),
        (["--top-p", "0"], "top_p must lie"),
        (["--temperature", "inf"], "temperature must be"),
        (["--repetition-penalty", "0"], "repetition_penalty must be"),
        (["--stop", ""], "stop must be"),
        (["--system", "be brief"], "belongs to --chat"),
        (["--top-k", "5"], "--top-k changes nothing at --temperature 0"),
        (["--top-p", "0.9"], "--top-p changes nothing at --temperature 0"),
        (["--seed", "1"], "--seed changes nothing at --temperature 0"),
        (["--chat"], "no chat template"),
        (["--max-tokens", "0"], "--max-tokens"),
    ],
)
def test_mistakes_are_usage_errors(run, model: Path, flags: list[str], problem: str) -> None:
    done = run("generate", model, "abc", *flags)
    assert done.exit_code == 2
    assert problem in " ".join(done.output.split())


def test_an_empty_prompt_begins_a_text(run, model: Path) -> None:
    done = run("generate", model, "", "--max-tokens", "5")
    assert done.exit_code == 0, done.output
    assert "prompt 1 tokens" in done.stderr
    piped = CliRunner().invoke(app, ["generate", str(model), "-", "--max-tokens", "5"], input="")
    assert piped.stdout == done.stdout


@pytest.mark.parametrize("flags", [["--temperature", "1e-60"], ["--temperature", "5e-324", "--top-k", str(2**64 + 3)]])
def test_values_that_fp32_lacks_are_no_mistake(run, model: Path, flags: list[str]) -> None:
    greedy = run("generate", model, "abc", "--max-tokens", "5", "-q")
    assert run("generate", model, "abc", "--max-tokens", "5", "-q", *flags).stdout == greedy.stdout


def test_an_error_is_not_called_an_interrupt(run, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lowdim.core.errors import NumericalError
    from lowdim.infer.decode.generate import Piece

    def fail(*arguments: object) -> Iterator[Piece]:
        yield Piece(5, "some")
        raise NumericalError("the logits hold NaN.")

    monkeypatch.setattr("lowdim.infer.decode.generate.generate", fail)
    done = run("generate", model, "abc")
    assert (done.exit_code, done.stdout) == (1, "some\n")
    assert done.stderr.strip() == "Error: the logits hold NaN."


def test_a_prompt_that_is_too_long_is_an_error(run, model: Path) -> None:
    done = run("generate", model, "a" * 200)
    assert done.exit_code == 1
    assert "the longest is 128" in done.stderr
    assert "ended by" not in done.stderr


def test_other_architectures_run_in_transformers(run, model: Path, tmp_path: Path) -> None:
    import shutil

    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    other = shutil.copytree(model, tmp_path / "gpt2")
    (other / "generation_config.json").unlink(missing_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        GPT2LMHeadModel(GPT2Config(vocab_size=80, n_embd=32, n_layer=2, n_head=4, n_positions=64)).save_pretrained(
            other
        )
    done = run("generate", other, "abc", "--max-tokens", "5")
    assert done.exit_code == 0, done.output
    assert "Transformers, as architecture 'gpt2' has no native decode step" in done.stderr


def endless(model: Path, tmp_path: Path) -> str:
    """A model that talks for long: room for many tokens, and no end token."""
    import json
    import shutil

    path = shutil.copytree(model, tmp_path / "endless")
    config = json.loads((path / "config.json").read_text())
    config |= {"max_position_embeddings": 1 << 20, "eos_token_id": None}
    (path / "config.json").write_text(json.dumps(config))
    (path / "generation_config.json").unlink(missing_ok=True)
    return str(path)


def test_ctrl_c_keeps_what_there_is(model: Path, tmp_path: Path) -> None:
    program = forked.Program(forked.lowdim, "generate", endless(model, tmp_path), "abc", "--max-tokens", "1000000")
    begun = program.stdout.read(20)
    program.send_signal(signal.SIGINT)
    rest, errors = program.communicate(timeout=60)
    assert program.returncode == 130
    assert len(begun) == 20
    assert rest.endswith("\n")
    assert "ended by an interrupt" in errors
    assert "Traceback" not in errors


def test_a_reader_who_leaves_early_is_no_error(model: Path, tmp_path: Path) -> None:
    program = forked.Program(forked.lowdim, "generate", endless(model, tmp_path), "abc", "--max-tokens", "1000000")
    os.read(program.stdout.fileno(), 10)
    program.stdout.close()
    errors = program.stderr.read()
    assert program.wait(60) == 0, errors
    assert "Traceback" not in errors
    assert "Broken" not in errors
    assert "ended by its reader" in errors
    program.stderr.close()
