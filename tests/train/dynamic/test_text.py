"""Character-level language models on what scikit-learn says of its own data sets, in English."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowdim.train import SNTASGD, SelfishRNN, SparseTraining, Static

STEPS, BATCH = 25, 16


def text() -> tuple[Tensor, Tensor, int]:
    """Return characters as numbers, [BATCH, length] to train on and to validate on."""
    datasets = pytest.importorskip("sklearn.datasets")
    names = ("breast_cancer", "diabetes", "digits", "iris", "linnerud", "wine")
    whole = "".join(getattr(datasets, f"load_{name}")().DESCR for name in names)
    known = sorted(set(whole))
    codes = torch.tensor([known.index(c) for c in whole])
    codes = codes[: len(codes) // BATCH * BATCH].reshape(BATCH, -1)
    cut = codes.shape[1] * 9 // 10
    return codes[:, :cut], codes[:, cut:], len(known)


class Model(nn.Module):
    def __init__(self, characters: int) -> None:
        super().__init__()
        self.embed, self.rnn = nn.Embedding(characters, 32), nn.LSTM(32, 96, batch_first=True)
        self.head = nn.Linear(96, characters)

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        hidden, state = self.rnn(self.embed(x), state)
        return self.head(hidden), state

    def loss(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        out, state = self(x[:, :-1], state)
        return nn.functional.cross_entropy(out.flatten(0, 1), x[:, 1:].flatten()), state


def train(method: Any, epochs: int, nonmono: int = 99, start: int = 99, seed: int = 0) -> dict[str, Any]:
    learn, check, characters = text()
    torch.manual_seed(seed)
    model = Model(characters)
    optimizer = SNTASGD(model.parameters(), lr=8.0, nonmono=nonmono)
    pieces = learn.split(STEPS, dim=1)
    training = SparseTraining(
        model, optimizer, sparsity=0.67, allocation="uniform", method=method, total_steps=epochs * len(pieces)
    )
    plain, averaged = [], []
    for epoch in range(epochs):
        if epoch == start:
            optimizer.start()
        state = None
        for piece in pieces:
            loss, state = model.loss(piece, state)
            state = tuple(s.detach() for s in state)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.25)
            optimizer.step()
        with torch.no_grad():
            plain.append(model.loss(check)[0].item())
            with optimizer.averaged():
                averaged.append(model.loss(check)[0].item())
        optimizer.observe(averaged[-1])
    return {"plain": plain, "averaged": averaged, "training": training, "averaging": optimizer.averaging}


@pytest.mark.slow
def test_averages_are_better_than_the_last_weights_on_real_text() -> None:
    run = train(SelfishRNN(every=100, drop=0.5), 24, nonmono=1)
    assert run["averaging"]
    assert run["averaged"][-1] < run["plain"][-1] - 0.1
    assert min(run["averaged"]) < min(run["plain"]) - 0.1
    assert run["training"].sparsity() == pytest.approx(0.67, abs=1e-4)


@pytest.mark.slow
def test_moving_masks_explore_and_learn_no_worse_than_fixed_ones() -> None:
    moving, fixed = (train(method, 20, start=12) for method in (SelfishRNN(every=100, drop=0.5), Static()))
    assert moving["training"].explored() > 1.5 * fixed["training"].explored()
    assert min(moving["averaged"]) < 1.01 * min(fixed["averaged"])
