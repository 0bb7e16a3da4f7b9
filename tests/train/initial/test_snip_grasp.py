import pytest
import torch
from tests.train.initial.nets import Transformer, bare, conv_net, images, tokens
from torch import nn

from lowdim.core.errors import NumericalError, RecipeError
from lowdim.train import SNIP, GraSP


def half_square(outputs, targets):
    return ((outputs - targets) ** 2).sum() / 2


def line():
    return bare([[1.0, 2.0]]), (torch.ones(1, 2), torch.zeros(1, 1))


def test_snip_worked_example():
    net, batch = line()
    scores = SNIP().scores(SNIP().start(net, batch, half_square))["0.weight"]
    assert scores.tolist() == [[pytest.approx(1 / 3), pytest.approx(2 / 3)]]
    assert SNIP().masks(net, batch, loss=half_square, sparsity=0.5)["0.weight"].tolist() == [[False, True]]


def test_grasp_worked_example():
    net, batch = line()
    method = GraSP(temperature=1.0)
    scores = method.scores(method.start(net, batch, half_square))["0.weight"]
    assert scores.tolist() == [[6.0, 12.0]]  # H g = (6, 6)
    assert GraSP(temperature=1.0).masks(net, batch, loss=half_square, sparsity=0.5)["0.weight"].tolist() == [
        [False, True]
    ]


def test_snip_adds_gradients_before_the_absolute_value():
    net, (x, _) = line()
    method = SNIP()
    there, back = (x, torch.tensor([[0.0]])), (x, torch.tensor([[6.0]]))  # gradients (3, 3) and (-3, -3)
    start = method.start(net, [there, back], half_square)
    assert method.scores(start)["0.weight"].tolist() == [[0.0, 0.0]]


def test_snip_is_the_derivative_by_the_mask():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    x, y = torch.randn(7, 4, dtype=torch.float64), torch.randint(3, (7,))
    method = SNIP()
    scores = method.scores(method.start(net, (x, y), include=["*"]))["0.weight"]
    mask = torch.ones(5, 4, dtype=torch.float64, requires_grad=True)
    weights = {"0.weight": net[0].weight.detach() * mask}
    loss = nn.functional.cross_entropy(torch.func.functional_call(net, weights, (x,)), y)
    (by_mask,) = torch.autograd.grad(loss, mask)
    assert torch.allclose(scores / scores.sum(), by_mask.abs() / by_mask.abs().sum(), rtol=1e-5)


def test_grasp_is_weight_times_hessian_times_gradient():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Tanh(), nn.Linear(4, 3, bias=False)).double()
    batches = [(torch.randn(5, 3, dtype=torch.float64), torch.randint(3, (5,))) for _ in range(2)]
    method = GraSP()
    scores = method.scores(method.start(net, iter(batches), include=["0"]))["0.weight"]

    def loss(w):
        outputs = [torch.func.functional_call(net, {"0.weight": w}, (x,)) / 200 for x, _ in batches]
        return sum(nn.functional.cross_entropy(o, y) for o, (_, y) in zip(outputs, batches, strict=True))

    w = net[0].weight.detach()
    g = torch.autograd.functional.jacobian(loss, w).reshape(-1)
    hessian = torch.autograd.functional.hessian(loss, w).reshape(12, 12)
    assert torch.allclose(scores.double().reshape(-1), w.reshape(-1) * (hessian @ g), rtol=1e-4, atol=1e-12)


def test_grasp_of_a_loss_that_is_linear_keeps_the_first():
    net, (x, y) = line()
    found = GraSP().masks(net, (x, y), loss=lambda outputs, _: outputs.sum(), sparsity=0.5)
    assert found["0.weight"].tolist() == [[True, False]]


def test_snip_empties_a_layer_and_says_so():
    torch.manual_seed(0)
    layers = [m for _ in range(6) for m in (nn.Linear(50, 50), nn.ReLU())]
    net = nn.Sequential(*layers, nn.Linear(50, 4))
    with pytest.warns(UserWarning, match=r"SNIP left no weight in .*weight"):
        masks = SNIP().masks(net, (torch.randn(32, 50), torch.randint(4, (32,))), sparsity=0.999)
    assert sum(int(m.sum()) for m in masks.values()) == 15


@pytest.mark.parametrize("method", [SNIP().masks, GraSP().masks])
def test_called_outside_of_recording(method):
    model = conv_net()
    inside = method(model, images(), sparsity=0.5)
    with torch.no_grad():
        outside = method(model, images(), sparsity=0.5)
    assert all(torch.equal(inside[name], outside[name]) for name in inside)


@pytest.mark.parametrize("method", [SNIP().masks, GraSP().masks])
def test_tied_weights_count_once_with_both_uses(method):
    masks = method(Transformer(), tokens(), sparsity=0.3)
    assert "one.weight" in masks
    assert "two.weight" not in masks


def test_batch_norm_follows_the_mode_of_the_network():
    model = conv_net()
    model[1].running_var.fill_(100.0)
    start = SNIP().start(model, images())
    training = SNIP().scores(start)["0.weight"]
    model.eval()
    assert not torch.allclose(training, SNIP().scores(start)["0.weight"])


def test_half_precision_scores_are_exact_in_count():
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)).bfloat16()
    batch = torch.randn(8, 16, dtype=torch.bfloat16), torch.randint(4, (8,))
    for method in (SNIP().masks, GraSP().masks):
        assert int(method(model, batch, sparsity=0.75)["0.weight"].sum()) == 128


def test_bad_temperature_and_nan():
    with pytest.raises(RecipeError, match="temperature must be above 0; got 0"):
        GraSP(temperature=0.0)
    net, (x, y) = line()
    with pytest.raises(NumericalError, match=r"the gradient of 0\.weight holds NaN"):
        GraSP().masks(net, (x * float("inf"), y), loss=half_square, sparsity=0.5)
