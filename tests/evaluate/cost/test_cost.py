"""FLOPs and memory: by hand, against torch's own counter, RigL's formula, schedules."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils.flop_counter import FlopCounterMode

from lowdim.core.errors import RecipeError
from lowdim.evaluate.cost.cost import Cost
from lowdim.evaluate.cost.flops import LayerCost, ModelCost, count, training_flops
from lowdim.evaluate.cost.memory import STORAGES, inference_memory, live_bytes, saved_bytes, training_memory
from lowdim.evaluate.errors import EvaluationError


class Block(nn.Module):
    """A residual block that halves the image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.conv2 = nn.Conv2d(32, 32, 3, padding=1, groups=4)
        self.shortcut = nn.Conv2d(16, 32, 1, stride=2)
        self.fc = nn.Linear(32, 10)
        self.gain = nn.Parameter(torch.ones(32, 1, 1))
        self.drop = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.conv2(self.bn1(self.conv1(x)).relu()) * self.gain + self.shortcut(x)
        return self.fc(self.drop(h.relu().mean((2, 3))))


def test_a_residual_block_by_hand() -> None:
    cost = count(Block(), torch.zeros(1, 16, 8, 8))
    places = 4 * 4
    assert {name: layer.products for name, layer in cost.layers.items()} == {
        "conv1.weight": places * 32 * 16 * 9,
        "conv2.weight": places * 32 * 8 * 9,
        "shortcut.weight": places * 32 * 16,
        "fc.weight": 320,
    }
    assert cost.uncounted == ("gain",)
    assert cost.flops() == 2 * (places * 32 * (16 * 9 + 8 * 9 + 16) + 320)
    # a weight of conv1 costs 16 products, one of the last layer a single one
    sparse = cost.flops({"conv1.weight": 32 * 16 * 9 - 5, "fc.weight": 300})
    assert sparse == pytest.approx(cost.flops() - 2 * (5 * places + 20))


@pytest.mark.parametrize(
    ("model", "x"),
    [
        (Block(), torch.zeros(3, 16, 9, 7)),
        (nn.Linear(5, 4), torch.zeros(2, 6, 5)),
        (nn.Conv1d(4, 6, 3, dilation=2), torch.zeros(2, 4, 11)),
        (nn.Conv3d(2, 3, 2), torch.zeros(1, 2, 4, 5, 6)),
        (nn.ConvTranspose2d(6, 4, 3, stride=2), torch.zeros(2, 6, 5, 5)),
    ],
    ids=["block", "linear", "conv1d", "conv3d", "transposed"],
)
def test_dense_counts_are_those_of_torch(model: nn.Module, x: torch.Tensor) -> None:
    with FlopCounterMode(display=False) as counter:
        model.eval()(x)
    assert count(model, x).flops() == counter.get_total_flops()


@pytest.mark.parametrize(("kind", "gates"), [(nn.RNN, 1), (nn.GRU, 3), (nn.LSTM, 4)])
def test_recurrent_layers_use_each_weight_at_each_step(kind, gates: int) -> None:
    model = kind(3, 5, num_layers=2, bidirectional=True)
    cost = count(model, torch.zeros(7, 2, 3))
    assert len(cost.layers) == 8
    assert all(layer.products == 14 * layer.weights for layer in cost.layers.values())
    assert cost.layers["weight_ih_l1_reverse"].weights == gates * 5 * 10
    packed = pack_sequence([torch.zeros(4, 3), torch.zeros(2, 3)])
    assert count(model, packed).layers["weight_hh_l0"].products == 6 * gates * 25


def test_recurrent_cells() -> None:
    cost = count(nn.LSTMCell(3, 5), torch.zeros(2, 3))
    assert {name: layer.products for name, layer in cost.layers.items()} == {
        "weight_ih": 2 * 60,
        "weight_hh": 2 * 100,
    }


def test_attention_counts_its_four_projections() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16)
    cost = count(layer, torch.zeros(5, 1, 8))
    assert cost.flops() == 2 * 5 * (4 * 64 + 2 * 128)
    assert cost.uncounted == ()
    cross = nn.MultiheadAttention(8, 2, kdim=6, vdim=4)
    found = count(cross, torch.zeros(5, 1, 8), torch.zeros(3, 1, 6), torch.zeros(3, 1, 4)).layers
    assert [layer.products for layer in found.values()] == [5 * 64, 3 * 48, 3 * 32, 5 * 64]


def test_a_layer_that_is_called_twice_counts_twice_and_an_embedding_not() -> None:
    layer = nn.Linear(4, 4)
    model = nn.Sequential(nn.Embedding(10, 4), layer, nn.LayerNorm(4), layer)
    cost = count(model, torch.zeros(1, 3, dtype=torch.long))
    assert cost.layers["1.weight"].products == 2 * 3 * 16
    assert cost.uncounted == ("0.weight",)


SMALL = ModelCost({"a": LayerCost(100, 100), "b": LayerCost(10, 1000)}, ())


@pytest.mark.parametrize("period", [1, 100])
def test_the_average_step_is_that_of_rigl(period: int) -> None:
    kept = {"a": 20, "b": 1}
    sparse, full = SMALL.flops(kept), SMALL.flops()
    assert (sparse, full) == (2 * (20 + 100), 2 * 1100)
    steps = 3 * (period + 1)
    updates = range(period, steps, period + 1)
    spent = training_flops(SMALL, [(0, kept)], steps, dense_gradients=updates)
    formula = (3 * sparse * period + 2 * sparse + full) / (period + 1)
    assert spent / steps == pytest.approx(formula)


def test_a_schedule_of_densities_by_hand() -> None:
    schedule = [(0, {}), (4, {"a": 50}), (6, {"a": 10, "b": 5}), (99, {"a": 0})]
    dense, half, last = 2200.0, 2 * (50 + 1000), 2 * (10 + 500)
    spent = training_flops(SMALL, schedule, 10, dense_gradients=[5, 9], batch=8)
    assert spent == 8 * (3 * (4 * dense + 2 * half + 4 * last) + (dense - half) + (dense - last))
    assert training_flops(SMALL, [(0, {})], 10) == 30 * dense


@pytest.mark.parametrize(
    ("schedule", "updates", "message"),
    [
        ([], [], "starts at step 0"),
        ([(1, {})], [], "starts at step 0"),
        ([(0, {}), (5, {}), (3, {})], [], "does not go back"),
        ([(0, {"c": 1})], [], "no counted weight 'c'"),
        ([(0, {"a": 101})], [], "100 weights; got 101"),
        ([(0, {})], [10], "step 10"),
    ],
)
def test_bad_schedules(schedule, updates, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        training_flops(SMALL, schedule, 10, dense_gradients=updates)


def test_training_memory_by_hand() -> None:
    model = nn.Sequential(nn.Linear(100, 20), nn.Linear(20, 5, bias=False))
    model[1].weight.requires_grad_(False)
    kept = {"0.weight": 200}
    found = {storage: training_memory(model, kept, storage, 2, 7) for storage in STORAGES}
    dense = found["dense"]
    assert (dense.weights, dense.gradients, dense.state, dense.masks) == (4 * 2120, 4 * 2020, 8 * 2020, 0)
    assert dense.total == 4 * 2120 + 12 * 2020 + 7
    assert found["masked"].total == dense.total + 2000
    sparse = found["sparse"]
    assert (sparse.weights, sparse.gradients, sparse.state) == (4 * 320, 4 * 220, 8 * 220)
    assert sparse.masks == 4 * 200 + 8 * 21
    running = [inference_memory(model, kept, storage, 7).total for storage in STORAGES]
    assert running == [4 * 2120 + 7, 4 * 2120 + 7, 4 * 320 + 4 * 200 + 8 * 21 + 7]
    half = training_memory(model.bfloat16(), kept, "sparse", 1)
    assert (half.weights, half.state) == (2 * 320, 2 * 220)


def test_memory_of_what_does_not_exist() -> None:
    with pytest.raises(EvaluationError, match="Did you mean 'weight'"):
        training_memory(nn.Linear(2, 2), {"wight": 1}, "sparse")
    with pytest.raises(EvaluationError, match="storage 'csr'"):
        inference_memory(nn.Linear(2, 2), {}, "csr")  # type: ignore[arg-type]


def test_activations_are_what_the_backward_pass_needs() -> None:
    chain = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    x = torch.zeros(10, 8)
    # the input, and the output of the ReLU once, for itself and for the layer that reads it
    assert saved_bytes(chain, x) == 4 * 10 * (8 + 16)
    assert live_bytes(chain, x) == 4 * 10 * (16 + 16)
    frozen = chain.requires_grad_(False)
    assert saved_bytes(frozen, x) == 0


def test_nothing_of_the_model_changes() -> None:
    model = Block().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    kept = {"conv1.weight": 100}
    Cost().measure(model, torch.ones(1, 16, 8, 8), [(0, kept)], 10)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(module.training and not module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_report_of_a_run_that_grows_sparse() -> None:
    model = nn.Sequential(nn.Linear(20, 50), nn.BatchNorm1d(50), nn.ReLU(), nn.Linear(50, 10))
    schedule = [(0, {"0.weight": 1000, "3.weight": 500}), (50, {"0.weight": 100, "3.weight": 50})]
    found = Cost(state=1).measure(model, torch.zeros(1, 20), schedule, 100, batch=32)
    assert found.dense_training_flops == 3 * 2 * 1500 * 100 * 32
    assert found.training_flops == pytest.approx(found.dense_training_flops * (0.5 + 0.05))
    assert found.inference_flops == pytest.approx(0.1 * found.dense_inference_flops)
    # the peak of memory is at the start, while the weights are dense: indices come on top of them
    training = found.training_memory
    assert training["sparse"].weights == training["dense"].weights == 4 * (1500 + 60 + 100)
    assert training["sparse"].total > training["dense"].total
    assert found.inference_memory["sparse"].total < found.inference_memory["dense"].total
    assert training["dense"].activations == saved_bytes(model, torch.zeros(32, 20))


def test_bad_settings() -> None:
    with pytest.raises(RecipeError, match="state"):
        Cost(state=-1)
