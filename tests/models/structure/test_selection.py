"""Which weights become sparse by default, and by name."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from tests.models.zoo import ZOO
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from torch.nn.utils import prune
from torch.optim.swa_utils import AveragedModel

from lowdim.core.errors import RecipeError
from lowdim.models.structure.heads import GUESSED
from lowdim.models.structure.selection import inner, named_weights, select, weights
from lowdim.models.ticket import tensors
from lowdim.train import SparseTraining, Static
from lowdim.train.optimizers.base import matrices


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 16) for _ in range(2))
        self.norm = nn.LayerNorm(8)


def test_a_transformer_without_a_head() -> None:
    names = list(select(Encoder()))
    assert names[:4] == [
        "layers.0.self_attn.in_proj_weight",
        "layers.0.self_attn.out_proj.weight",
        "layers.0.linear1.weight",
        "layers.0.linear2.weight",
    ]
    assert len(names) == 8


def test_the_head_is_dense_unless_named() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 8), nn.Linear(8, 2))
    assert list(select(model)) == ["0.weight", "3.weight"]
    assert list(select(model, include=["4"])) == ["4.weight"]
    assert list(select(model, include=["*"], exclude=["0"])) == ["3.weight", "4.weight"]


def test_regular_expressions_begin_with_re() -> None:
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4)))
    assert list(select(model, include=["re:[13]"])) == ["1.weight", "3.weight"]
    assert list(select(model, include=["*"], exclude=["re:^[12]$", "0"])) == ["3.weight"]


def test_recurrent_networks() -> None:
    model = nn.ModuleDict({"rnn": nn.LSTM(4, 8, 2), "out": nn.Linear(8, 4)})
    assert list(select(model)) == [
        "rnn.weight_ih_l0",
        "rnn.weight_hh_l0",
        "rnn.weight_ih_l1",
        "rnn.weight_hh_l1",
    ]


def test_language_models() -> None:
    model = ZOO["llama"]()
    names = list(select(model))
    assert names
    assert all(".layers." in name for name in names)
    assert {w.name: w.dense for w in weights(model)}.get("lm_head.weight") in (None, "head")


def test_one_layer_alone_is_no_head() -> None:
    assert list(select(nn.Linear(3, 3))) == ["weight"]


class Branches(nn.Module):
    """A network with a child that is called as wrappers call theirs, one beside it, and names that end so."""

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.ModuleDict({"fc": nn.Linear(4, 4), "module": nn.Linear(4, 4)})
        self.fc = nn.Linear(4, 4)
        self.vision_module = nn.ModuleDict({"fc": nn.Linear(4, 4)})
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.vision_module["fc"](self.fc(self.module["module"](self.module["fc"](x)))))


class OwnAverage(nn.Module):
    """A moving average as users write them."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.module = copy.deepcopy(net)


def checkpointed(net: nn.Module) -> nn.Module:
    apply_activation_checkpointing(net, check_fn=lambda m: isinstance(m, nn.Linear))
    return net


BRANCHES = ["module.fc.weight", "module.module.weight", "fc.weight", "vision_module.fc.weight"]
WRAPPED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "bare": lambda net: net,
    "DataParallel": nn.DataParallel,
    "compiled": torch.compile,  # type: ignore[dict-item]
    "average": AveragedModel,
    "average of a compiled one": lambda net: AveragedModel(torch.compile(net)),  # type: ignore[arg-type]
    "checkpointed": checkpointed,
    "all": lambda net: AveragedModel(nn.DataParallel(torch.compile(checkpointed(net)))),  # type: ignore[arg-type]
}


@pytest.mark.filterwarnings("ignore:.*script_method")
@pytest.mark.parametrize("wrap", list(WRAPPED.values()), ids=list(WRAPPED))
def test_wrappers_are_not_part_of_names_and_children_are(wrap: Callable[[nn.Module], nn.Module]) -> None:
    wrapped = wrap(Branches())
    assert list(select(wrapped)) == BRANCHES
    assert {*BRANCHES, "head.weight"} <= named_weights(wrapped).keys()
    assert {*BRANCHES, "head.weight"} <= set(tensors(wrapped))


def test_a_wrapper_inside_is_not_part_of_a_name() -> None:
    net = nn.ModuleDict({"body": nn.DataParallel(nn.Linear(4, 4)), "module": nn.Linear(4, 4), "head": nn.Linear(4, 2)})
    assert list(select(net)) == ["body.weight", "module.weight"]


@pytest.mark.filterwarnings("ignore:.*script_method")
@pytest.mark.parametrize("wrap", [*WRAPPED.values(), OwnAverage], ids=[*WRAPPED, "the user's own"])
def test_averages_are_masked_whatever_children_are_called(wrap: Callable[[nn.Module], nn.Module]) -> None:
    net = Branches()
    average = wrap(copy.deepcopy(net))
    training = SparseTraining(net, torch.optim.SGD(net.parameters(), lr=0.1), sparsity=0.5, method=Static())
    held = named_weights(average, training.masks)
    for act in (training.settle, training.apply_):
        with torch.no_grad():
            for parameter in average.parameters():
                parameter.fill_(1.0)
        act(average)
        assert all(torch.equal(held[name] != 0, mask) for name, mask in training.masks.items())


class HeadFirst(nn.Module):
    """A network whose head is registered before what leads to it."""

    def __init__(self, name: str) -> None:
        super().__init__()
        setattr(self, name, nn.Linear(8, 3))
        self.body = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8))


@pytest.mark.parametrize("name", ["head", "lm_head", "classifier", "fc", "score"])
@pytest.mark.parametrize("wrap", [lambda net: net, lambda net: nn.ModuleDict({"net": net})], ids=["bare", "wrapped"])
def test_a_head_is_told_by_its_name_wherever_it_is_registered(
    name: str, wrap: Callable[[nn.Module], nn.Module]
) -> None:
    dense = {w.name.removeprefix("net."): w.dense for w in weights(wrap(HeadFirst(name))) if w.dense}
    assert dense == {f"{name}.weight": "head"}


def test_a_model_says_which_layer_is_its_classifier() -> None:
    net = HeadFirst("answer")
    net.get_classifier = lambda: net.answer
    assert {w.name: w.dense for w in weights(net) if w.dense} == {"answer.weight": "head"}


def test_a_layer_named_like_a_head_that_others_follow_is_none() -> None:
    net = nn.ModuleDict({"fc": nn.Linear(4, 8), "out": nn.Linear(8, 3), "side": nn.Linear(5, 9)})
    assert {w.name: w.dense for w in weights(net) if w.dense} == {"side.weight": GUESSED}


def test_a_guess_is_called_one() -> None:
    dense = [w.dense for w in weights(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3)))]
    assert dense == ["", GUESSED]
    assert "guess" in GUESSED


class Odd(nn.Module):
    """Weights of every kind that is no layer's plain weight."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Linear(6, 6)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(6, 6))
        self.pruned = nn.Linear(6, 6)
        prune.l1_unstructured(self.pruned, "weight", 0.5)
        self.bilinear = nn.Bilinear(6, 6, 6)
        self.raw = nn.Parameter(torch.zeros(6, 6))
        self.table = nn.Embedding(5, 6)
        self.spread = nn.LayerNorm([6, 6])
        self.head = nn.Linear(6, 5, bias=False)
        self.head.weight = self.table.weight


def test_every_weight_of_two_dimensions_is_listed_with_its_reason() -> None:
    net = Odd()
    listed = {w.name: w.dense for w in weights(net, include=["plain"])}
    assert listed.keys() == {name for name, p in net.named_parameters() if p.dim() >= 2}
    assert listed.pop("plain.weight") == ""
    said = {
        "normed.parametrizations.weight.original0": "parametrized",
        "normed.parametrizations.weight.original1": "parametrized",
        "pruned.weight_orig": "torch.nn.utils.prune",
        "bilinear.weight": "Bilinear is no linear",
        "raw": "Odd is no linear",
        "table.weight": "embedding, tied to head",
        "spread.weight": "norm",
        "spread.bias": "norm",
    }
    assert listed.keys() == said.keys()
    assert all(reason in listed[name] for name, reason in said.items())


@pytest.mark.parametrize("name", ["bilinear.weight", "table", "raw", "pruned.weight_orig"])
def test_to_include_what_cannot_be_sparse_is_refused_with_the_reason(name: str) -> None:
    with pytest.raises(RecipeError, match=f"include '{name}' names {name}.*, which cannot be sparse: "):
        weights(Odd(), include=[name])


def test_what_a_recurrent_layer_is_computed_from_is_no_weight_of_it() -> None:
    net = nn.ModuleDict({"rnn": nn.GRU(4, 8), "out": nn.Linear(8, 4)})
    prune.random_unstructured(net["rnn"], "weight_hh_l0", 0.5)
    listed = {w.name: w.dense for w in weights(net)}
    assert listed["rnn.weight_ih_l0"] == ""
    assert "torch.nn.utils.prune" in listed["rnn.weight_hh_l0_orig"]


def test_old_reparametrizations_are_named() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 4), nn.Linear(4, 2))
    listed = {w.name: w.dense for w in weights(net)}
    assert all("reparametrized by a hook" in listed[f"0.weight_{part}"] for part in "gv")


def test_what_matches_nothing() -> None:
    with pytest.raises(RecipeError, match="Did you mean"):
        select(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), include=["0.weigth"])
    with pytest.raises(RecipeError, match=r"exclude 're:2\.weigt' matches no weight that can be sparse\. Did you"):
        select(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), exclude=["re:2.weigt"])
    with pytest.raises(RecipeError, match="'re:\\(' is not a regular expression"):
        select(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), include=["re:("])
    with pytest.raises(RecipeError, match="there is none in the model"):
        select(nn.Sequential(nn.ReLU()))


def test_an_embedding_tied_to_the_head_stays_dense() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(7, 4)
            self.body = nn.Linear(4, 4)
            self.head = nn.Linear(4, 7, bias=False)
            self.head.weight = self.embedding.weight

    assert list(select(Tied())) == ["body.weight"]


@pytest.mark.parametrize("name", ZOO)
def test_what_optimizers_call_matrices_are_the_weights_between_embeddings_and_head(name: str) -> None:
    model = ZOO[name]()
    dense = {w.name: w.dense for w in weights(model)}
    mine = [w.name for w in inner(model)]
    assert {n for n, why in dense.items() if not why} <= set(mine)
    assert not [n for n in mine if dense[n] == "head" or dense[n].startswith("embedding")]
    flat = [w.parameter for w in inner(model) if w.parameter.dim() == 2]
    assert [id(p) for p in matrices(model)] == [id(p) for p in flat]


class Answering(nn.Module):
    """Tables of two kinds, a body, and a head that the model tells in one of its ways."""

    def __init__(self, told: str) -> None:
        super().__init__()
        self.table, self.bag = nn.Embedding(9, 8), nn.EmbeddingBag(9, 8)
        name = told if told in ("score", "classifier") else "answer"
        setattr(self, name, nn.Linear(8, 2))
        self.body = nn.Linear(8, 8)
        if told.startswith("get_"):
            setattr(self, told, lambda: self.answer)


@pytest.mark.parametrize("told", ["score", "classifier", "get_classifier", "get_output_embeddings"])
def test_the_head_is_no_matrix_however_it_is_told(told: str) -> None:
    net = Answering(told)
    assert [w.name for w in inner(net)] == ["body.weight"] == list(select(net))
    assert [id(p) for p in matrices(net)] == [id(net.body.weight)]
    net.body.requires_grad_(False)
    assert matrices(net) == []


def test_a_guess_takes_no_matrix_from_an_optimizer() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3))
    assert len(matrices(net)) == 2
    assert list(select(net)) == ["0.weight"]
