import pytest
import torch
from tests.train.initial.nets import bare, conv_net, images
from torch import nn

from lowdim.core.errors import CheckpointError, NumericalError, RecipeError
from lowdim.train import IMP, LotteryTickets, SparseTraining, Static


def net():
    return bare([[1.0, -2.0], [3.0, 4.0]], [[5.0, -6.0]])


def grow(model, by):
    """Stand in for training: weights move so that magnitudes change their order."""
    with torch.no_grad():
        for p in model.parameters():
            p.add_(by * torch.arange(p.numel(), 0, -1.0).reshape(p.shape))


def train(model, ticket, steps=2):
    torch.manual_seed(ticket.round)  # dropout
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    training = SparseTraining(model, optimizer, method=Static(), masks=ticket.masks)
    x, y = images()
    for _ in range(steps):
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    training.remove()


def test_kept_counts():
    tickets = LotteryTickets()
    assert [tickets.kept(100, r) for r in range(6)] == [100, 80, 64, 51, 41, 33]
    assert tickets.kept(1_000_000, 19) == 14412
    assert tickets.kept(3, 50) == 1
    assert tickets.kept(0, 1) == 0


def test_weights_go_back_to_their_initial_values_under_the_mask():
    model = net()
    seen = []
    for ticket in IMP(model, rate=1 / 3, rounds=2, include=["*"]):
        seen.append((ticket.round, [p.detach().clone() for p in model.parameters()]))
        assert ticket.step == 0
        grow(model, 10.0)  # the first weights become the largest: 41 28 23 14 / 25 4
    (_, dense), (_, first), (_, second) = seen
    assert [p.tolist() for p in dense] == [[[1, -2], [3, 4]], [[5, -6]]]
    assert [p.tolist() for p in first] == [[[1, -2], [3, 0]], [[5, 0]]]
    # of 1 + 40, -2 + 30, 3 + 20 and 5 + 20 the smallest goes: round(6 * 4 / 9) = 3 stay
    assert [p.tolist() for p in second] == [[[1, -2], [0, 0]], [[5, 0]]]


def test_scope_layer_prunes_each_by_itself():
    model = net()
    found = [t.masks for t in IMP(model, rate=0.5, rounds=1, scope="layer", include=["*"])]
    assert found[1]["0.weight"].tolist() == [[False, False], [True, True]]
    assert found[1]["2.weight"].tolist() == [[False, True]]


def test_what_training_wrote_behind_the_mask_does_not_count():
    model = net()
    rounds = iter(IMP(model, rate=0.5, rounds=2, scope="layer", include=["*"]))
    next(rounds)
    next(rounds)
    with torch.no_grad():
        model[0].weight[0, 0] = 99.0
    last = next(rounds)
    assert last.masks["0.weight"].tolist() == [[False, False], [False, True]]


def test_rewinding_to_an_early_step():
    model = conv_net()
    rounds = IMP(model, rate=0.3, rounds=2)
    for ticket in rounds:
        if ticket.round == 0:
            train(model, ticket)
            rounds.mark(2)
            marked = {name: value.clone() for name, value in model.state_dict().items()}
        else:
            assert ticket.step == 2
            for name, value in model.state_dict().items():
                kept = ticket.masks.get(name, torch.ones((), dtype=torch.bool))
                assert torch.equal(value, marked[name] * kept)
            assert torch.equal(ticket.state["1.running_mean"], marked["1.running_mean"])
        train(model, ticket)
        rounds.mark(5) if ticket.round else None
    assert rounds.round == 2


def test_counts_are_exact_and_masks_nested():
    model = conv_net()
    before = None
    for ticket in IMP(model, rate=0.2, rounds=4):
        total = sum(m.numel() for m in ticket.masks.values())
        assert sum(int(m.sum()) for m in ticket.masks.values()) == round(total * 0.8**ticket.round)
        assert ticket.sparsity == pytest.approx(1 - 0.8**ticket.round, abs=1 / total)
        if before is not None:
            assert all(bool((before[name] | ~mask).all()) for name, mask in ticket.masks.items())
        before = dict(ticket.masks)
        train(model, ticket)


def test_resumes_at_the_round_it_was_saved_in(tmp_path):
    def run(model, rounds, stop=None):
        masks = []
        for ticket in rounds:
            masks.append((ticket.round, dict(ticket.masks)))
            train(model, ticket, steps=1)
            if ticket.round == 0:
                rounds.mark(1)
            if ticket.round == stop:
                torch.save(rounds.state_dict(), tmp_path / "rounds.pt")
                break
            train(model, ticket)
        return masks, model.state_dict()

    model = conv_net()
    whole, weights = run(model, IMP(model, rate=0.4, rounds=3))
    model = conv_net()
    run(model, IMP(model, rate=0.4, rounds=3), stop=2)
    other = conv_net()
    with torch.no_grad():
        other[0].weight.zero_()
    rounds = IMP(other, rate=0.4, rounds=3)
    rounds.load_state_dict(torch.load(tmp_path / "rounds.pt", weights_only=True))
    rest, resumed = run(other, rounds)
    assert [r for r, _ in rest] == [2, 3]
    for (_, a), (_, b) in zip(whole[2:], rest, strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)
    assert all(torch.equal(weights[name], resumed[name]) for name in weights)


def test_a_state_of_something_else():
    state = IMP(net(), rounds=2, include=["*"]).state_dict()
    with pytest.raises(CheckpointError, match=r"saved with .*'rounds': 2.* Use the same settings"):
        IMP(net(), rounds=3, include=["*"]).load_state_dict(state)
    with pytest.raises(CheckpointError, match=r"of another model; the first difference is \('0\.weight'"):
        IMP(bare([[1.0, 2.0]], [[1.0]]), rounds=2, include=["*"]).load_state_dict(state)


def test_nan_weights_are_refused_and_the_round_can_be_trained_again():
    model = net()
    rounds = IMP(model, rate=0.5, rounds=1, include=["*"])
    walk = iter(rounds)
    next(walk)
    with torch.no_grad():
        model[0].weight[0, 0] = torch.nan
    with pytest.raises(NumericalError, match=r"0\.weight hold NaN"):
        next(walk)
    assert [t.round for t in rounds] == [0, 1]


def test_an_emptied_layer_is_named():
    model = bare([[1.0, 2.0], [3.0, 4.0]], [[0.1, 0.2]])
    with pytest.warns(UserWarning, match=r"lottery-tickets left no weight in 2\.weight"):
        list(IMP(model, rate=0.5, rounds=1, include=["*"]))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rate": 0.0}, "rate must be above 0 and below 1"),
        ({"rate": 20}, "rate must be above 0 and below 1 .*got 20"),
        ({"rounds": 0}, "rounds must be a whole number of at least 1; got 0"),
        ({"scope": "all"}, "unknown scope 'all'"),
    ],
)
def test_bad_settings(settings, words):
    with pytest.raises(RecipeError, match=words):
        LotteryTickets(**settings)
    with pytest.raises(RecipeError, match=words):
        IMP(net(), **settings)


def test_start_from_the_method():
    rounds = LotteryTickets(rate=0.5, rounds=1).start(net(), include=["0"])
    assert [int(t.masks["0.weight"].sum()) for t in rounds] == [4, 2]
