"""Which weights become sparse by default, and by name."""

from __future__ import annotations

import pytest
from tests.models.zoo import ZOO
from torch import nn

from lowdim.core.errors import RecipeError
from lowdim.models.walk.selection import plain_name, select, weights


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


def test_wrappers_are_not_part_of_names() -> None:
    assert plain_name("module.layers.0.weight") == "layers.0.weight"
    assert plain_name("_orig_mod.submodule.weight") == "submodule.weight"
    wrapped = nn.DataParallel(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)))
    assert list(select(wrapped)) == ["0.weight"]


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
