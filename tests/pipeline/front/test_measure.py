"""The time that a form's tokens may take is bounded, and what is left out is said."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lowdim.core.progress import Silent
from lowdim.data.batch import Batch
from lowdim.data.windows import Windows
from lowdim.infer.bench import timing
from lowdim.infer.bench.decode import FEWEST, ROUNDS
from lowdim.pipeline.front import llamacpp
from lowdim.pipeline.front import measure as measuring
from lowdim.pipeline.front.forms import FORMS
from lowdim.pipeline.front.measure import Run, measure_run
from lowdim.pipeline.front.peers import foreign
from lowdim.pipeline.front.settings import Settings

TEXT = Windows(torch.ones(1, 8, dtype=torch.int64), {})


class Slow:
    """A model that takes its seconds for every token, by a clock of its own."""

    backend, reason, vocab, now = "", "", 16, 0.0

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __call__(self, batches: Sequence[Batch]) -> Iterator[Tensor]:
        yield from (torch.zeros(*batch.input_ids.shape, self.vocab) for batch in batches)

    def prefill(self, ids: Sequence[int]) -> float:
        return 0.0

    def decode(self, ids: Sequence[int], tokens: int) -> list[float]:
        Slow.now += tokens * self.seconds
        return [self.seconds] * tokens

    def close(self) -> None: ...


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing.time, "monotonic", lambda: Slow.now)


@pytest.mark.parametrize(
    ("seconds", "tokens", "timed"),
    [(0.01, 32, 96), (0.6, 32, 96), (1.0, 48, 57), (4.0, 48, 3 * FEWEST), (10.0, 32, FEWEST), (100.0, 1, 1)],
)
def test_tokens_that_the_minute_does_not_hold_are_left_out(seconds: float, tokens: int, timed: int) -> None:
    begun, model = Slow.now, Slow(seconds)
    run = Run(model, model, model.vocab, 4096, 1, 1)
    row, _ = measure_run(FORMS["dense-int8"], run, Settings("model", tokens=tokens), None, TEXT, Silent())
    assert row.tokens_per_s == pytest.approx(1 / seconds, rel=0.5)
    left_out = ROUNDS * tokens - timed
    assert row.note == (f"timed on {timed} tokens: {left_out} left out, 60 s were up" if left_out else "")
    assert Slow.now - begun <= 60 + 2 * FEWEST * seconds


@pytest.mark.parametrize(("form", "products", "said"), [("sparse-50-bf16", False, True), ("dense-bf16", True, False)])
def test_what_bf16_means_without_its_products_is_said(
    form: str, products: bool, said: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "multiplies_bf16", lambda: products)
    model = Slow(0.01)
    row, _ = measure_run(
        FORMS[form], Run(model, model, model.vocab, 64, 1, 1), Settings("model", tokens=1), None, TEXT, Silent()
    )
    assert ("multiplied in fp32" in row.note) == said


def test_a_model_of_llama_cpp_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: Any = lambda file, room: Slow(100.0)  # noqa: E731
    for name, value in (("missing", lambda: ""), ("LlamaCpp", made), ("bytes_read", lambda file: 1)):
        monkeypatch.setattr(llamacpp, name, value)
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    row = foreign(FORMS["source"], tmp_path, Settings(str(file)), 64, None, TEXT, Silent())
    assert row.note == "llama.cpp, model.gguf; timed on 4 tokens: 92 left out, 60 s were up"
