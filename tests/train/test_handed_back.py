"""Whoever wrote weights or masks last: the training and the model agree afterwards, or a warning says both numbers."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("lightning.pytorch")

from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging
from tests.train.loops import STEPS, WAYS, Hugging, Light, Net, Points, Way, weights, zeros
from tests.turns import turns

from lowdim.core import registry
from lowdim.core.errors import LowdimError
from lowdim.train import GradualMagnitude, SparseTraining, Static

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(dataloader|num_workers|checkpoint directory|log_every|weights_only|callbacks used|isinstance.treespec)"
)
MOVING: dict[str, dict[str, Any]] = {
    "chase": {"channel_every": 4, "beta": 0.2},
    "st-rnn": {"gates": 1},
    "itop/momentum": {"grow": "momentum"},
    "itop/unfired": {"grow": "unfired"},
    "rigl/after": {"order": "after_step"},
    "ctre/training": {"activations": "training"},
    "gradual-magnitude/layer": {"scope": "layer"},
    "granet/uniform": {"scope": "uniform", "start": 0.5},
}
"""Settings of methods, and of other readings of them, beside an ``every`` of 2."""

GROWS_SPARSER = {"sparsity": 0.8, "method": GradualMagnitude(every=2, until=1.0)}


@pytest.fixture(params=list(WAYS))
def way(request: Any, tmp_path: Path) -> Way:
    return WAYS[request.param](tmp_path)


def agree(way: Way, net: Net) -> float:
    """Return the sparsity that training and model agree on, without a warning."""
    assert way.training is not None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        said = way.training.sparsity()
    held = dict(net.named_parameters())
    assert not any(held[name][~mask].any() for name, mask in way.training.masks.items())
    assert zeros(net) == pytest.approx(said, abs=0.02)  # a weight just grown is zero as well
    return said


def riding(way: Way) -> Any:
    """Return the training while it is under way."""
    return way.training if way.callback is None else way.callback.training


def of_average(net: Net, source: Net) -> None:
    """Write the mean of a network and a dense one into it, as averages do."""
    average = torch.optim.swa_utils.AveragedModel(source)
    average.update_parameters(source)
    average.update_parameters(net)
    with torch.no_grad():
        for mine, other in zip(net.parameters(), average.parameters(), strict=True):
            mine.data.copy_(other)


def test_a_best_checkpoint_brings_its_own_masks(way: Way, monkeypatch: Any) -> None:
    best = {"load_best_model_at_end": True, "metric_for_best_model": "score", "greater_is_better": True}
    monkeypatch.setattr(Hugging, "best", {**best, "eval_strategy": "steps", "eval_steps": 4})
    net = Net()
    if isinstance(way, Hugging):
        with pytest.warns(UserWarning, match=r"of step 4 of 8 and have 7\d\.\d+% zeros, fewer than the 80\.\d+% asked"):
            way.fit(net, "a", GROWS_SPARSER)
    else:
        way.fit(net, "a", GROWS_SPARSER)
        assert agree(way, net) == pytest.approx(0.8, abs=1e-3)
        found = way.checkpoint("a", 4)
        if isinstance(way, Light):
            way.trainer.validate(
                net, torch.utils.data.DataLoader([]), ckpt_path=found, weights_only=False, verbose=False
            )
        else:
            net.load_state_dict(found["model"])
            with pytest.warns(UserWarning, match=r"masks leave 80\.\d+% zeros, but the weights have 7\d\.\d+%"):
                way.training.sparsity()  # type: ignore[union-attr]
            way.training.load_state_dict(found["sparse"])  # type: ignore[union-attr]
    assert agree(way, net) == pytest.approx(0.7, abs=0.02)


def test_averages_get_the_masks(way: Way) -> None:
    net, dense = Net(), Net(seed=1)
    way.fit(net, "a", Way.settings, last=lambda net: of_average(net, dense))
    assert agree(way, net) == pytest.approx(0.8, abs=1e-3)
    of_average(net, dense)  # behind everybody's back
    with pytest.warns(UserWarning, match=r"masks leave 80\.\d+% zeros, but the weights have 0\.00%"):
        way.training.sparsity()  # type: ignore[union-attr]


@pytest.mark.parametrize("place", ["before", "behind"])
@pytest.mark.parametrize("kind", ["swa", "swa-norm", "ema"])
def test_averages_of_lightning(kind: str, place: str, tmp_path: Path) -> None:
    way, net = Light(tmp_path), Net()
    if kind == "swa-norm":  # whose averages are in the module for an epoch that measures norms
        net.net[1] = nn.Sequential(nn.BatchNorm1d(32), nn.ReLU())
    swa = StochasticWeightAveraging(swa_lrs=1e-2, swa_epoch_start=1)
    setattr(way, place, (EMAWeightAveraging(decay=0.5) if kind == "ema" else swa,))
    way.fit(net, "a", Way.settings)
    assert agree(way, net) == pytest.approx(0.8, abs=1e-3)
    assert way.training is not None
    saved = way.read(way.checkpoint("a", 8))
    assert not any(saved[name][~mask].any() for name, mask in way.training.masks.items())


def test_a_run_resumes(way: Way) -> None:
    whole, net = Net(), Net()
    way.fit(whole, "a", Way.settings)
    other = type(way)(way.home)
    other.fit(net, "a", Way.settings, resume=way.checkpoint("a", 4))
    assert way.training is not None
    assert other.training is not None
    assert other.training.masks == way.training.masks
    assert other.training.history == way.training.history
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), net.parameters(), strict=True))


@pytest.mark.parametrize("dense", [False, True], ids=["another-run", "dense"])
def test_masks_of_another_run_are_refused(way: Way, dense: bool) -> None:
    net, settings = Net(seed=2), Way.settings
    way.fit(Net(), "masks", settings)
    type(way)(way.home).fit(Net(seed=1), "model", None if dense else settings)
    found = way.mix(way.checkpoint("model", 4), way.checkpoint("masks", 4))
    with pytest.raises(LowdimError, match=r"not that of the model's weights.*nothing has been changed"):
        type(way)(way.home).fit(net, "model", settings, resume=found)
    assert all(torch.equal(p, way.read(found)[name]) for name, p in weights(net).items())


def test_another_step_of_the_same_run_is_refused(way: Way) -> None:
    way.fit(Net(), "a", GROWS_SPARSER)
    found, net = way.mix(way.checkpoint("a", 8), way.checkpoint("a", 4)), Net(seed=2)
    with pytest.raises(LowdimError, match=r"that were not zero when it was saved, many are"):
        type(way)(way.home).fit(net, "a", GROWS_SPARSER, resume=found)


def test_a_checkpoint_without_masks_is_refused(way: Way) -> None:
    way.fit(Net(), "a", None)
    net = Net(seed=2)
    with pytest.raises(LowdimError, match=r"saved (without|with)|does not exist|not saved by"):
        type(way)(way.home).fit(net, "a", Way.settings, resume=way.checkpoint("a", 4))


def test_a_second_training_goes_on_with_its_masks(way: Way) -> None:
    net, settings = Net(), {"sparsity": 0.8, "method": Static()}
    way.fit(net, "a", settings)
    assert way.training is not None
    masks, before = way.training.masks, weights(net)
    seen: list[int] = []

    def look(step: int, loop: Any) -> None:
        seen.append(sum(int((before[n][m] != 0).sum()) for n, m in masks.items()))
        assert all(bool((dict(net.named_parameters())[n][m] != 0).float().mean() > 0.99) for n, m in masks.items())

    way.fit(net, "b", settings, each=look)
    assert len(seen) == STEPS
    assert way.training.masks == masks
    assert agree(way, net) == pytest.approx(0.8, abs=1e-3)


class Rows(nn.Module):
    """Reads four rows of four numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(4, 24, batch_first=True), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.lstm(x.view(-1, 4, 4))[0][:, -1])
        return out


@pytest.mark.parametrize(
    ("way", "name"), turns(list(WAYS), sorted({*registry.names("training"), *MOVING}), of=3), indirect=["way"]
)
def test_a_second_training_goes_on_with_masks_that_move(way: Way, name: str) -> None:
    found = registry.find("training", name.partition("/")[0])
    method = found.load()(**({"every": 2} if "every" in found.settings() else {}), **MOVING.get(name, {}))
    net, settings = Net(), {"sparsity": 0.8, "method": method}
    if name == "selfish-rnn":
        net.net = Rows()  # type: ignore[assignment]
    way.fit(net, "a", settings)
    assert way.training is not None
    first, before = way.training, weights(net)
    masks, explored = first.masks, {n: seen.positions() for n, seen in first._explored.items()}
    known = {n: observer.state_dict() for n, observer in first._observers.items()}
    began: list[Any] = []

    def look(step: int, loop: Any) -> None:
        if step == 1 and not began:  # no method moves at the first step
            now = dict(net.named_parameters())
            began.append(riding(way).masks)
            assert all(bool((now[n] != 0)[before[n] != 0].float().mean() > 0.99) for n in masks)

    way.fit(net, "b", settings, each=look)
    assert way.training is not first
    assert began == [masks]
    history = [entry["step"] for entry in way.training.history]
    assert history == [entry["step"] for entry in first.history]
    assert bool(history) == method.moves
    for n, seen in way.training._explored.items():
        assert set(explored[n].tolist()) <= set(seen.positions().tolist())
    if name == "chase":
        removed = way.training._observers["channels"].removed
        assert removed
        assert all(not bool((known["channels"][n] & ~removed[n]).any()) for n in removed)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert way.training.sparsity() == pytest.approx(0.8, abs=1e-3)
    assert not any(dict(net.named_parameters())[n][~m].any() for n, m in way.training.masks.items())


def test_a_callback_of_another_model_begins_afresh(way: Way) -> None:
    way.fit(Net(), "a", Way.settings)
    net = Net(seed=1)
    way.fit(net, "b", Way.settings)
    assert way.training is not None
    assert way.training.model is net
    assert agree(way, net) == pytest.approx(0.8, abs=1e-3)


def test_another_optimizer_is_refused(way: Way) -> None:
    net = Net()
    before: list[Any] = []

    def swap(step: int, loop: Any) -> None:
        if step == 3:
            way.change(loop, torch.optim.SGD(net.parameters(), lr=0.1))
            before.append(weights(net))

    with pytest.raises(LowdimError, match=r"this SGD would step net\.0\.weight.*\(AdamW\).*remove\(\)"):
        way.fit(net, "a", Way.settings, each=swap)
    assert all(torch.equal(p, before[0][name]) for name, p in weights(net).items())


def test_a_loaded_optimizer_state_is_cleared(way: Way) -> None:
    warm, net = Net(), Net()
    optimizer = warm.make(warm.parameters())
    for batch in torch.utils.data.DataLoader(Points(), 8):
        warm(**batch)["loss"].backward()
        optimizer.step()

    def loaded(parameters: Any) -> torch.optim.Optimizer:
        made = torch.optim.AdamW(parameters, lr=0.02)
        made.load_state_dict(optimizer.state_dict())
        return made

    net.make = loaded
    seen: list[int] = []

    def look(step: int, loop: Any) -> None:
        for layer in riding(way).layers:
            state = riding(way).optimizer.state[layer.parameter]
            seen.append(sum(int(state[key][~layer.mask()].count_nonzero()) for key in ("exp_avg", "exp_avg_sq")))

    way.fit(net, "a", {"sparsity": 0.8, "method": Static()}, each=look)
    assert len(seen) == 2 * STEPS
    assert not any(seen)


def test_weights_written_between_steps_are_said_before_they_are_zeroed() -> None:
    net = Net()
    optimizer = net.make(net.parameters())
    training = SparseTraining(net, optimizer, sparsity=0.8, method=Static())
    for turn in range(3):
        if turn == 1:
            net.load_state_dict(Net(seed=1).state_dict())
        net(**next(iter(torch.utils.data.DataLoader(Points(), 8))))["loss"].backward()
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            optimizer.step()
        numbers = r"masks leave 80\.\d+% zeros, but the weights have 0\.00%"
        assert bool(said) == (turn == 1) == any(re.search(numbers, str(w.message)) for w in said)
    assert training.sparsity() == pytest.approx(0.8, abs=1e-3)


def test_masks_drawn_over_a_sparse_model_are_said_at_the_first_step() -> None:
    net = Net()
    first = SparseTraining(net, net.make(net.parameters()), sparsity=0.8, method=Static())
    first.remove()
    optimizer = net.make(net.parameters())
    SparseTraining(net, optimizer, sparsity=0.8, method=Static(), seed=1)
    net(**next(iter(torch.utils.data.DataLoader(Points(), 8))))["loss"].backward()
    with pytest.warns(
        UserWarning, match=r"80\.\d+% of the weights were zero already, and the masks drawn \(80\.\d+% zeros\)"
    ):
        optimizer.step()
