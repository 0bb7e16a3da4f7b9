"""AlphaDecay: exponents and factors by hand, steps equal to those of one group per matrix, and what takes no part."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.nn.placement.decoders import decoder
from tests.train.riders.test_prores import Text
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from lowdim.core.errors import LowdimError, NumericalError
from lowdim.core.recipe.families import build
from lowdim.core.spectrum import hill_exponent, tail_exponent
from lowdim.train.adapters.huggingface import RiderCallback
from lowdim.train.loop import Loop
from lowdim.train.riders.alphadecay import AlphaDecay
from lowdim.train.riders.spectral import SpectralDecay


def test_both_forms_of_hill_by_hand() -> None:
    spectrum = np.array([1.0, 2.0, 4.0, 8.0])
    assert hill_exponent(spectrum) == pytest.approx(1 + 2 / (np.log(4) + np.log(2)))  # 1.9618
    assert tail_exponent(spectrum, "xmin_mid") == pytest.approx(1 + 2 / np.log(2))  # 3.8854
    matrix = torch.diag(torch.tensor([1.0, 2.0, 4.0, 8.0]).sqrt())
    assert AlphaDecay().exponent(matrix) == pytest.approx(1.9618, abs=1e-4)
    assert AlphaDecay(estimator="median").exponent(matrix) == pytest.approx(3.8854, abs=1e-4)


@pytest.mark.parametrize("estimator", ["hill", "median"])
def test_exponents(estimator: Any) -> None:
    method = AlphaDecay(estimator=estimator)
    weight = torch.randn(24, 16, generator=torch.Generator().manual_seed(0))
    alpha = method.exponent(weight)
    assert method.exponent(1e-3 * weight) == pytest.approx(alpha)
    assert method.exponent(weight.T) == pytest.approx(alpha)
    padded = torch.zeros(30, 40)
    padded[:24, :16] = weight
    assert method.exponent(padded) == pytest.approx(alpha)  # zero singular values take no part
    for nothing in (torch.zeros(4, 4), torch.eye(4), torch.ones(4, 4)):
        assert np.isnan(method.exponent(nothing))
    kernels = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    values = np.sort(np.concatenate([np.linalg.svd(kernels[:, :, i, j])[1] ** 2 for i in range(3) for j in range(3)]))
    expected = hill_exponent(values) if estimator == "hill" else tail_exponent(values, "xmin_mid")
    assert method.exponent(kernels) == pytest.approx(expected, rel=1e-4)
    with pytest.raises(NumericalError, match="NaN"):
        method.exponent(torch.full((3, 3), float("nan")))


def test_factors_by_hand() -> None:
    found = AlphaDecay().ratios({"a": 2.0, "b": 3.0, "c": 6.0, "none": float("nan")}, 5.0)
    assert found == pytest.approx({"a": 2 / 3, "b": 2 / 3 + (5 - 2 / 3) / 4, "c": 5.0, "none": 1.0})
    assert AlphaDecay().ratios({"a": 2.0, "b": 2.0}, 5.0) == {"a": 1.0, "b": 1.0}
    assert AlphaDecay().ratios({"a": float("nan")}, 5.0) == {"a": 1.0}
    assert build("decay", {"name": "alphadecay", "every": 100}) == AlphaDecay(every=100)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Linear(12, 16), nn.Linear(16, 16)
        self.three, self.head = nn.Linear(16, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.three(torch.tanh(self.two(torch.tanh(self.one(x))))))
        return found


NAMES = ("one.weight", "two.weight", "three.weight")
OPTIMIZERS: dict[str, tuple[Callable[..., Any], float]] = {
    "adamw": (torch.optim.AdamW, 5.0),
    "adam": (torch.optim.Adam, 3.0),
    "adam-decoupled": (lambda *a, **k: torch.optim.Adam(*a, **k, decoupled_weight_decay=True), 5.0),
    "sgd": (torch.optim.SGD, 3.0),
}


def data(step: int) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(step)
    return torch.randn(8, 12, generator=source), torch.randint(3, (8,), generator=source)


def groups(net: nn.Module, decay: float) -> list[dict[str, Any]]:
    weights = [p for p in net.parameters() if p.dim() > 1]
    return [{"params": weights, "weight_decay": decay}, {"params": [p for p in net.parameters() if p.dim() < 2]}]


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_steps_are_those_of_a_group_per_matrix(kind: str) -> None:
    make, high = OPTIMIZERS[kind]
    method, steps = AlphaDecay(every=3, least=4), 8
    net, twin = Net(), Net()
    optimizer = make(groups(net, 0.1), lr=0.05, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 - step / 20)
    rider = SpectralDecay(net, optimizer, method)
    assert len(optimizer.param_groups) == 2
    named = dict(twin.named_parameters())
    apart = [{"params": [named.pop(name)], "weight_decay": 0.0} for name in NAMES]
    rest = [{"params": [named.pop("head.weight")], "weight_decay": 0.1}, {"params": list(named.values())}]
    other = make([*apart, *rest], lr=0.05, weight_decay=0.0)
    for step in range(steps):
        x, y = data(step)
        for model, one in ((net, optimizer), (twin, other)):
            nn.functional.cross_entropy(model(x), y).backward()
            if one is other:
                for group in other.param_groups:
                    group["lr"] = 0.05 * (1.0 - step / 20)
                if step % 3 == 0:
                    alphas = {n: method.exponent(twin.get_parameter(n).detach()) for n in NAMES}
                    for name, group in zip(NAMES, other.param_groups, strict=False):
                        group["weight_decay"] = 0.1 * method.ratios(alphas, high)[name]
            one.step()
            one.zero_grad()
        schedule.step()
    assert rider.ratios == pytest.approx(method.ratios(alphas, high), rel=1e-4)
    assert min(rider.ratios.values()) == pytest.approx(2 / 3) and max(rider.ratios.values()) == pytest.approx(high)
    for ours, theirs in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)
    rider.remove()
    assert optimizer.param_groups[0]["weight_decay"] == 0.1


def test_what_takes_part() -> None:
    net = Net()
    net.two.weight.requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], weight_decay=0.1)
    assert list(SpectralDecay(net, optimizer, AlphaDecay(least=2)).ratios) == ["one.weight", "three.weight"]
    assert list(SpectralDecay(net, optimizer, AlphaDecay(least=2, skip_first=True)).ratios) == ["three.weight"]
    tied = decoder("llama", tie_word_embeddings=True)
    rider = SpectralDecay(tied, torch.optim.AdamW(tied.parameters()), AlphaDecay(least=16))
    assert len(rider.ratios) == 4 * 7 and not any("embed" in name or "head" in name for name in rider.ratios)


def test_refusals() -> None:
    net = Net()
    for optimizer in (torch.optim.AdamW(net.parameters()), torch.optim.Adam(net.parameters())):
        with pytest.raises(LowdimError, match="there is no matrix to decay by its spectrum: none of 50 eigenvalues"):
            SpectralDecay(net, optimizer, AlphaDecay(least=50))
    with pytest.raises(LowdimError, match="whose weight_decay is above 0"):
        SpectralDecay(net, torch.optim.AdamW(net.parameters(), weight_decay=0.0), AlphaDecay(least=2))
    with pytest.raises(LowdimError, match="how RMSprop decays weights is not known"):
        SpectralDecay(net, torch.optim.RMSprop(net.parameters(), weight_decay=0.1))


def trained(net: nn.Module, steps: range, state: Any = None, **more: Any) -> tuple[SpectralDecay, Loop]:
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01, weight_decay=0.1)
    rider = SpectralDecay(net, optimizer, AlphaDecay(every=4, least=4))
    loop = Loop(
        net, optimizer, loss=lambda m, b: nn.functional.cross_entropy(m(b[0]).float(), b[1]), riders=[rider], **more
    )
    if state is not None:
        loop.load_state_dict(copy.deepcopy(state))
    loop.run([data(step) for step in steps], None)
    return rider, loop


def test_it_goes_on_where_it_was() -> None:
    whole, half, rest = Net(), Net(), Net()
    rider, _ = trained(whole, range(10))
    _, loop = trained(half, range(6))
    again, _ = trained(rest, range(6, 10), loop.state_dict())
    assert again.alphas == rider.alphas and again.step == 10
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), rest.parameters(), strict=True))
    with pytest.raises(LowdimError, match="of another model"):
        rider.load_state_dict({"step": 3, "alphas": {"x": 2.0}})


def test_narrow_weights_need_fp32_copies() -> None:
    net = Net().bfloat16()
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.1)
    SpectralDecay(net, optimizer, AlphaDecay(least=4))
    net(data(0)[0].bfloat16()).sum().backward()
    with pytest.warns(UserWarning, match="weights are bfloat16, which rounds decays"):
        optimizer.step()


@pytest.mark.filterwarnings("ignore")
def test_in_the_trainer(tmp_path: Path) -> None:
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=6,
        save_steps=3,
        weight_decay=0.1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    ends = []
    for resume in (None, str(tmp_path / "checkpoint-3")):
        model = decoder("llama")
        callback = RiderCallback(SpectralDecay, "decay", method=AlphaDecay(every=2, least=16))
        Trainer(model, arguments, train_dataset=Text(), callbacks=[callback]).train(resume_from_checkpoint=resume)
        assert callback.training is not None and callback.training.step == 6
        ends.append((callback.training.alphas, model.state_dict()))
    assert len(ends[0][0]) == 28 and ends[0][0] == ends[1][0]
    assert all(torch.equal(ends[0][1][name], ends[1][1][name]) for name in ends[0][1])


@pytest.mark.parametrize("kind", ["adamw", "adam", "sgd"])
def test_an_objective_that_is_climbed_decays_alike(kind: str) -> None:
    make, _ = OPTIMIZERS[kind]
    ends = []
    for sign, up in ((1.0, False), (-1.0, True)):
        net = Net()
        optimizer = make(groups(net, 0.3), lr=0.05, weight_decay=0.0, maximize=up)
        rider = SpectralDecay(net, optimizer, AlphaDecay(every=3, least=4))
        for step in range(5):
            x, y = data(step)
            (sign * nn.functional.cross_entropy(net(x), y)).backward()
            optimizer.step()
            optimizer.zero_grad()
        assert max(rider.ratios.values()) > 2
        ends.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
    assert torch.equal(*ends)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("kind", ["adamw", "adam", "sgd"])
def test_gradients_that_are_scaled_decay_alike(kind: str, fused: bool) -> None:
    make, _ = OPTIMIZERS[kind]
    ends = []
    for scaled in (False, True):
        net = Net()
        optimizer = make(groups(net, 0.3), lr=0.05, weight_decay=0.0, fused=fused)
        SpectralDecay(net, optimizer, AlphaDecay(every=3, least=4))
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, enabled=scaled)
        for step in range(5):
            x, y = data(step)
            scaler.scale(nn.functional.cross_entropy(net(x), y)).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        ends.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
    assert torch.allclose(*ends, atol=1e-6)
