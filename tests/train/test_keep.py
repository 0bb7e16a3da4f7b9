"""A pruned model is fine-tuned and keeps its zeros; what would lose them is refused before anything changes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.models.zoo import VOCAB
from tests.prune import tiny
from tests.train.small import batch, mlp, train
from torch import Tensor, nn
from torch.nn import functional as F

import lowdim
from lowdim.core.errors import LowdimError, RecipeError
from lowdim.core.masks import Masks
from lowdim.nn.int8 import int8_
from lowdim.train import APOLLO, LISA, GaLore, KeepZeros, LayerSampling, SparseTraining, Static


def pruned(share: float = 0.6, seed: int = 0) -> nn.Sequential:
    """Return a network with zeros in every layer; one kept weight is zero-valued in none."""
    net, source = mlp(64, 32, 16, 4, seed=seed), torch.Generator().manual_seed(seed)
    for layer in (net[0], net[2], net[4]):
        layer.weight.data[torch.rand(layer.weight.shape, generator=source) < share] = 0.0  # type: ignore[operator,union-attr]
    return net


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def holds(model: nn.Module, masks: Masks) -> None:
    """Check that what is off is +0.0 to the bit, and that the rest is not."""
    found = weights(model)
    for name, mask in masks.items():
        assert not found[name][~mask].view(torch.int32).any(), name
        assert bool((found[name][mask] != 0).float().mean() > 0.99), name


def test_by_hand() -> None:
    layer = nn.Linear(4, 1, bias=False)
    layer.weight.data.copy_(torch.tensor([[1.0, -0.0, 2.0, 0.0]]))
    keep = KeepZeros(layer, torch.optim.SGD(layer.parameters(), lr=0.1, weight_decay=0.5))
    layer(torch.ones(1, 4)).sum().backward()
    keep.optimizer.step()
    assert torch.allclose(layer.weight, torch.tensor([[1 - 0.1 * 1.5, 0.0, 2 - 0.1 * 2.0, 0.0]]))
    assert not layer.weight.detach()[0, 1::2].view(torch.int32).any()  # +0.0, the -0.0 too
    assert keep.sparsity() == 0.5


def test_it_is_static_sparse_training_with_those_masks() -> None:
    net = pruned()
    other, masks = copy.deepcopy(net), Masks.of(net)
    for model, make in ((net, KeepZeros), (other, SparseTraining)):
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        make(model, optimizer, masks=masks, **({} if make is KeepZeros else {"method": Static()}))  # type: ignore[arg-type]
        train(model, optimizer, range(5), flat=True)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.5, amsgrad=True),
    "fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.1),
    "muon": lambda p: torch.optim.Muon([w for w in p if w.ndim == 2], lr=0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_optimizer(name: str) -> None:
    net = pruned()
    masks, before = Masks.of(net), weights(net)
    optimizer = OPTIMIZERS[name](list(net.parameters()))
    KeepZeros(net, optimizer)
    for step in range(4):
        train(net, optimizer, range(step, step + 1), flat=True)
        holds(net, masks)
    assert all(not torch.equal(before[n], w) for n, w in weights(net).items() if n in masks)


@pytest.mark.parametrize("way", ["accumulated", "scaled", "closure", "compiled", "warm"])
def test_any_loop(way: str) -> None:
    net = pruned()
    masks = Masks.of(net)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01, weight_decay=0.1)
    model: Any = torch.compile(net, backend="eager") if way == "compiled" else net
    scaler = torch.amp.GradScaler("cpu", enabled=way == "scaled", init_scale=2.0**126, growth_interval=2)
    if way == "warm":  # the optimizer remembers weights from before they were zero
        train(net, optimizer, range(3), flat=True)
        masks.apply_(net)
    KeepZeros(model, optimizer)
    before = weights(net)
    for step in range(6):
        x, y = batch(step)

        def loss(x: Tensor = x, y: Tensor = y) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=way == "scaled"):
                found = F.cross_entropy(model(x.flatten(1)), y)
            scaler.scale(found).backward()
            return found

        if way == "closure":
            optimizer.zero_grad()
            optimizer.step(loss)
        else:
            loss()
            if way != "accumulated" or step % 2:
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
        holds(net, masks)
    assert not torch.equal(before["0.weight"], net[0].weight)  # type: ignore[arg-type]


def test_frozen_layers_and_those_without_zeros_are_left_alone() -> None:
    net = pruned()
    net[4].weight.data.fill_(0.5)  # type: ignore[operator,union-attr]
    net[0].requires_grad_(False)
    keep = KeepZeros(net, torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1))
    assert list(keep.masks) == ["2.weight"]
    net[2].requires_grad_(False)
    with pytest.raises(LowdimError, match=r"no weight that is trained has a mask \(2 with one are frozen"):
        KeepZeros(net, torch.optim.SGD(net[4].parameters(), lr=0.1))


@pytest.mark.parametrize("way", ["thawed", "given later", "drawn in turns"])
def test_layers_that_are_trained_after_all_keep_their_zeros(way: str) -> None:
    net = pruned()
    masks = Masks.of(net)
    first = [*net[2:].parameters()]
    optimizer = torch.optim.AdamW(first if way == "given later" else net.parameters(), lr=0.05, weight_decay=0.1)
    if way == "drawn in turns":
        blocks = nn.ModuleDict({"layers": nn.ModuleList([net[0], net[2]]), "head": net[4]})
        LayerSampling(blocks, optimizer, LISA(active=1, every=1))
    else:
        net[0].requires_grad_(False)
    keep = KeepZeros(net, optimizer)
    assert len(keep.masks) == 2
    before = net[0].weight.detach().clone(), net[2].weight.detach().clone()  # type: ignore[operator,union-attr]
    train(net, optimizer, range(3), flat=True)
    if way != "drawn in turns":
        assert torch.equal(before[0], net[0].weight)  # type: ignore[arg-type]
        net[0].requires_grad_(True)
    if way == "given later":
        optimizer.add_param_group({"params": list(net[0].parameters())})
    train(net, optimizer, range(3, 12), flat=True)
    assert not torch.equal(before[0], net[0].weight) and not torch.equal(before[1], net[2].weight)  # type: ignore[arg-type]
    holds(net, masks)
    if way != "drawn in turns":
        with pytest.raises(LowdimError, match=r"would step 0\.weight, but KeepZeros rides on another optimizer"):
            train(net, torch.optim.SGD(net[0].parameters(), lr=0.1), range(1), flat=True)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("rule", [GaLore(rank=4, layerwise=True, lr=0.1), APOLLO(rank=4, layerwise=True)], ids=repr)
def test_an_optimizer_that_steps_in_the_backward_pass(rule: Any) -> None:
    net = pruned()
    masks, before = Masks.of(net), weights(net)
    optimizer = rule.build(net)
    KeepZeros(net, optimizer)
    train(net, optimizer, range(4), flat=True)
    holds(net, masks)
    assert not torch.equal(before["0.weight"], net[0].weight)  # type: ignore[arg-type]


def test_weights_in_eight_bits_are_refused_or_left_out() -> None:
    net = pruned()
    masks = {name: mask for name, mask in Masks.of(net).items() if name != "4.weight"}
    int8_(net, [net[0].weight, net[2].weight])  # type: ignore[list-item]
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for make in (lambda: KeepZeros(net, optimizer, masks), lambda: KeepZeros(net, optimizer)):
        with pytest.raises(LowdimError, match=r"0\.weight is kept in 8 bits"):
            make()
    optimizer = torch.optim.SGD(net[4].parameters(), lr=0.1)
    KeepZeros(net, optimizer, {"4.weight": net[4].weight != 0})  # type: ignore[dict-item]
    train(net, optimizer, range(2), flat=True)


def test_a_state_goes_on_in_a_longer_run_and_with_zeros_that_training_made() -> None:
    net = pruned()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    keep = KeepZeros(net, optimizer, total_steps=3)
    train(net, optimizer, range(3), flat=True)
    net[0].weight.data[keep.masks["0.weight"].nonzero()[0].unbind()] = 0.0  # type: ignore[operator,union-attr]
    again = copy.deepcopy(net)
    new = torch.optim.AdamW(again.parameters(), lr=0.01)
    resumed = KeepZeros(again, new, total_steps=9)
    assert resumed.masks.kept() == keep.masks.kept() - 1
    resumed.resume(keep.state_dict())
    assert resumed.masks == keep.masks
    train(again, new, range(3, 5), flat=True)
    resumed.finish()  # warns of nothing
    holds(again, keep.masks)


class TestRefused:
    """Before anything is changed."""

    @pytest.fixture(autouse=True)
    def unchanged(self) -> Any:
        self.net = pruned()
        before = weights(self.net)
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=0.01)
        yield
        assert all(torch.equal(before[name], w) for name, w in weights(self.net).items())
        assert not self.optimizer._optimizer_step_post_hooks

    @pytest.mark.parametrize(
        ("masks", "match"),
        [
            (Masks.of(pruned(seed=1)), r"weights of 0\.weight that the masks switch off are not zero.*apply_\(model\)"),
            ({"0": torch.zeros(32, 32).bool()}, r"mask of 0 has shape \(32, 32\), the weight has \(32, 64\)"),
            ({"layers.0.weight": torch.ones(2, 2).bool()}, r"no weight is named 'layers\.0\.weight'"),
            ({"0.weight": torch.rand(32, 64)}, r"the mask of 0\.weight holds other numbers than 0 and 1"),
            ({"0.bias": torch.ones(32).bool()}, "cannot be sparse"),
            ({}, "no weight that is trained has a mask"),
        ],
        ids=["other-weights", "shape", "name", "numbers", "bias", "empty"],
    )
    def test_masks(self, masks: Any, match: str) -> None:
        with pytest.raises(LowdimError, match=match):
            KeepZeros(self.net, self.optimizer, masks)

    def test_an_optimizer_without_the_weights(self) -> None:
        with pytest.raises(LowdimError, match=r"does not hold 0\.weight"):
            KeepZeros(self.net, torch.optim.SGD(pruned().parameters(), lr=0.1))

    def test_a_dense_model(self) -> None:
        dense = mlp(64, 32, 4)
        dense[0].weight.data[0, :3] = 0.0  # type: ignore[index,operator,union-attr]
        with pytest.raises(LowdimError, match=r"3 of the 2176 weights .* so the model was not pruned"):
            KeepZeros(dense, self.optimizer)

    def test_a_model_with_adapters(self) -> None:
        self.net.peft_config = SimpleNamespace()  # type: ignore[assignment]
        with pytest.raises(LowdimError, match=r"has adapters of PEFT.*mask_lora\(model\)"):
            KeepZeros(self.net, self.optimizer)

    def test_two_on_one_weight(self) -> None:
        net = pruned()
        first = KeepZeros(net, torch.optim.SGD(net.parameters(), lr=0.1))
        with pytest.raises(LowdimError, match="another SparseTraining already keeps"):
            KeepZeros(net, torch.optim.SGD(net.parameters(), lr=0.1))
        first.remove()
        KeepZeros(net, torch.optim.SGD(net.parameters(), lr=0.1))

    def test_several_gradients_in_a_step(self) -> None:
        net = pruned()
        with pytest.raises(LowdimError, match="LBFGS calls its closure more than once"):
            KeepZeros(net, torch.optim.LBFGS(net.parameters()))


@pytest.mark.filterwarnings("ignore:.*of the .* weights stay dense")
def test_from_disk_and_back(tmp_path: Path) -> None:
    source, out = tiny.save(tmp_path / "model"), tmp_path / "out"
    settings = {"method": "magnitude", "storage": "packed"}
    lowdim.prune(str(source), tiny.recipe(**settings), calibration=tiny.tokens(), out=out)
    model, masks = lowdim.load(out), Masks.load(out)
    for make in (
        lambda: KeepZeros(model, torch.optim.SGD(model.parameters(), lr=0.1), masks),
        lambda: SparseTraining(model, torch.optim.SGD(model.parameters(), lr=0.1), method=Static(), masks=masks),
        lambda: Masks.of(model),
    ):
        with pytest.raises(LowdimError, match=r"is a SparseLinear.*lowdim convert PACKED DENSE --storage dense"):
            make()

    lowdim.models.disk.convert.convert(out, tmp_path / "dense", "dense")
    dense = lowdim.load(tmp_path / "dense")
    optimizer = torch.optim.AdamW(dense.parameters(), lr=0.01)
    assert KeepZeros(dense, optimizer, masks).masks == Masks.of(dense) == masks
    ids = torch.randint(VOCAB, (2, 8), generator=torch.Generator().manual_seed(0))
    dense(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    tiny.save_model(dense, tmp_path / "tuned")
    tuned = lowdim.load(tmp_path / "tuned")
    holds(tuned, masks)
    assert not torch.equal(tuned.lm_head.weight, lowdim.load(tmp_path / "dense").lm_head.weight)


@pytest.mark.filterwarnings("ignore:.*of the .* weights stay dense", "ignore:.*weights stay dense")
def test_stacked_experts() -> None:
    model = tiny.model("mixtral")
    stacked = {name: p for name, p in model.named_parameters() if p.ndim == 3}
    for parameter in stacked.values():
        parameter.data[:, ::2] = 0.0
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    assert list(KeepZeros(model, optimizer).masks) == list(stacked)
    ids = torch.randint(VOCAB, (4, 8), generator=torch.Generator().manual_seed(0))
    before = weights(model)
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    for name, parameter in stacked.items():
        assert not parameter[:, ::2].any()
        assert not torch.equal(parameter, before[name])


def test_recipe_errors_are_of_the_house() -> None:
    with pytest.raises(RecipeError, match="total_steps"):
        KeepZeros(net := pruned(), torch.optim.SGD(net.parameters(), lr=0.1), total_steps=0)
