"""A tiny model on disk, a text, and a way to run the program in this process."""

from __future__ import annotations

import random
import string
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from lowdim.cli import app

CHARACTERS = string.ascii_letters + string.digits + " .,:?\n"
Run = Callable[..., Result]


@pytest.fixture
def run() -> Run:
    """Run the program with some arguments."""

    def program(*arguments: str | Path) -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return program


@pytest.fixture(autouse=True)
def undrawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages of pruned models have no pictures here, which take a second each: tests/report has them, and who asks."""
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr("lowdim.report.pruning.figures.pictures", lambda *_: [])


@pytest.fixture
def drawn() -> None:
    """The pages of this test have their pictures."""


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of three blocks with a character tokenizer."""
    import torch
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    path = tmp_path_factory.mktemp("models") / "tiny"
    vocabulary = {token: i for i, token in enumerate(["<s>", "</s>", "<unk>", *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(".|\n"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.save_pretrained(path)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten thousand characters without meaning."""
    path = tmp_path_factory.mktemp("texts") / "text.txt"
    path.write_text("".join(random.Random(0).choices(CHARACTERS, k=10_000)), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def small(text: Path) -> list[str]:
    """Flags that keep a run short."""
    evaluation = ["evaluation.context=32", "evaluation.windows=4", f"evaluation.text={text}"]
    settings = [argument for setting in evaluation for argument in ("--set", setting)]
    return ["--calibration", str(text), "--samples", "4", "--context", "32", *settings]


@pytest.fixture(scope="session")
def pruned(model: Path, small: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `lowdim prune` makes of the model at 60%; not to be changed."""
    out = tmp_path_factory.mktemp("out") / "sparse"
    done = CliRunner().invoke(app, ["prune", str(model), str(out), "--sparsity", "0.6", "--method", "wanda", *small])
    assert done.exit_code == 0, done.output
    return out
