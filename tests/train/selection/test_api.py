"""A whole ranking: what is written, resumed, refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import lowdim
from lowdim.core import registry
from lowdim.core.errors import RecipeError
from lowdim.data import classification
from lowdim.data.errors import DataError
from lowdim.data.labelled.source import Source
from lowdim.data.select.ranks import Ranks
from lowdim.models.encoders.encode import Encoder
from lowdim.report.build import build
from lowdim.runs.fingerprint import ResumeError
from lowdim.runs.lock import OutputError
from lowdim.train.selection import api
from lowdim.train.selection.sebra_ranking import SebraRanking

QUICK = {"name": "sebra", "lr": 0.002, "epochs": 8}


def source(count: int = 240) -> Source:
    """Grey pictures whose brightness goes with the class, but for a few."""
    y = torch.arange(count) % 2
    cue = torch.where(torch.arange(count) < 12, 1 - y, y)
    x = torch.randint(0, 60, (count, 1, 6, 6), generator=torch.Generator().manual_seed(0))
    x[:, :, :3] += 120 * cue.reshape(-1, 1, 1, 1)
    x[:, :, 3:, 3:] += 60 * y.reshape(-1, 1, 1, 1)
    return Source("made", "image", x.to(torch.uint8), y, ("a", "b"), tuple(f"{n}.png" for n in range(count)))


def files(home: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in home.iterdir()}


def test_what_is_written_is_what_was_found(tmp_path: Path) -> None:
    found = lowdim.rank(source(), method=QUICK, out=tmp_path / "ranks", seed=2)
    assert found.out is not None
    ranks = Ranks.load(found.out)
    assert torch.equal(ranks.rank, found.ranks.rank) and ranks.names == source().names
    assert ranks.check(found.data) is ranks
    told = json.loads((found.out / "ranks.json").read_text())
    assert told["net"]["name"] == "mlp" and told["facts"]["sign"] == found.sign.to_dict()
    assert told["settings"]["lr"] == 0.002 and told["settings"]["seed"] == 2
    assert sorted(files(found.out)) == ["ranks.csv", "ranks.json", "ranks.safetensors", "shown.json"]
    assert (tmp_path / "ranks.run.json").is_file()
    again = lowdim.rank(source(), method=QUICK, out=tmp_path / "again", seed=2)
    assert again.out is not None and files(found.out) == files(again.out)


def test_the_shown_samples_are_the_ends_of_the_ranking() -> None:
    found = lowdim.rank(source(), method=QUICK)
    for number, part in enumerate(found.shown["classes"]):
        mine = found.ranks.rank[found.ranks.label == number]
        assert part["first"][0]["rank"] == int(mine.min()) and part["last"][0]["rank"] == int(mine.max())
        assert [one["rank"] for one in part["first"]] == sorted(one["rank"] for one in part["first"])
        assert not {one["name"] for one in part["first"]} & {one["name"] for one in part["last"]}
        assert len(part["first"]) == len(part["last"]) == 10 and "png" in part["first"][0]


def test_a_killed_ranking_is_resumed_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = lowdim.rank(source(), method=QUICK, out=tmp_path / "whole").out
    train = SebraRanking.train_epoch

    def killed(self: SebraRanking) -> None:
        if self.epoch == 3:
            raise KeyboardInterrupt
        train(self)

    monkeypatch.setattr(SebraRanking, "train_epoch", killed)
    with pytest.raises(KeyboardInterrupt):
        lowdim.rank(source(), method=QUICK, out=tmp_path / "part")
    monkeypatch.setattr(SebraRanking, "train_epoch", train)
    assert not (tmp_path / "part").exists()
    with pytest.raises(OutputError, match="unfinished run"):
        lowdim.rank(source(), method=QUICK, out=tmp_path / "part")
    with pytest.raises(ResumeError, match=r"method\.p_crit"):
        lowdim.rank(source(), method=QUICK | {"p_crit": 0.6}, out=tmp_path / "part", resume=True)
    epochs: list[int] = []
    monkeypatch.setattr(SebraRanking, "train_epoch", lambda self: (epochs.append(self.epoch), train(self))[1])
    part = lowdim.rank(source(), method=QUICK, out=tmp_path / "part", resume=True).out
    assert epochs[0] == 3
    assert whole is not None and part is not None and files(whole) == files(part)


def test_an_output_is_replaced_only_if_asked(tmp_path: Path) -> None:
    lowdim.rank(source(), method=QUICK, out=tmp_path / "ranks")
    with pytest.raises(OutputError, match="exists"):
        lowdim.rank(source(), method=QUICK, out=tmp_path / "ranks")
    lowdim.rank(source(), method=QUICK, out=tmp_path / "ranks", seed=1, overwrite=True)
    assert Ranks.load(tmp_path / "ranks").settings["seed"] == 1


def test_a_ranking_that_fails_leaves_no_output(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no sample was learnt"):
        lowdim.rank(
            source(), method={"name": "sebra", "p_crit": 0.999, "epochs": 1, "lr": 1e-9}, out=tmp_path / "ranks"
        )
    assert not list(tmp_path.iterdir())


def test_samples_that_cannot_be_ranked_leave_nothing(tmp_path: Path) -> None:
    x = torch.randn(40, 3)
    x[3, 1] = torch.nan
    table = Source("t", "table", x, torch.arange(40) % 2, ("a", "b"), tuple(map(str, range(40))))
    with pytest.raises(DataError, match="not finite"):
        lowdim.rank(table, method=QUICK, out=tmp_path / "ranks")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("tune", [False, True])
def test_ranks_by_an_encoder_are_of_the_samples(tune: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")

    class Flat(nn.Module):
        width = 64

        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)

    encoder = Encoder("image", Flat, lambda source: source.x.float() / 16)
    monkeypatch.setitem(api.ENCODERS, "minilm", encoder)
    found = lowdim.rank(
        "digits", net="minilm", tune=tune, limit=300, method={"name": "sebra", "lr": 0.01, "epochs": 5, "p_crit": 0.4}
    )
    assert found.ranks.check(classification.load("digits", limit=300))
    assert found.ranks.check(found.data)


def test_an_encoder_ranks_pictures_for_training_as_training_reads_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Small(nn.Module):
        width = 3

        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3))

    monkeypatch.setitem(
        api.ENCODERS, "efficientnet-lite0", Encoder("image", Small, lambda source: source.x.float() / 99)
    )
    for number in range(60):
        value = np.full((6, 6, 3), 40 + 100 * (number % 2) + number, dtype=np.uint8)
        (tmp_path / "pets" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(value).save(tmp_path / "pets" / "ab"[number % 2] / f"{number}.png")
    home, how = str(tmp_path / "pets"), {"name": "el2n", "epochs": 1, "networks": 1}
    found = lowdim.rank(home, net="efficientnet-lite0", validation=0.2, method=how)
    assert found.ranks.check(classification.load(home, validation=0.2)) and found.data.shape == (3, 64, 64)
    whole = lowdim.rank(home, net="efficientnet-lite0", method=how)
    assert whole.data.shape == (3, api.ENCODER_SIZE, api.ENCODER_SIZE) and len(whole.ranks) == 60
    with pytest.raises(DataError, match="The same data, settings, size, validation"):
        whole.ranks.check(found.data)


def test_rates_follow_the_network() -> None:
    texts = Source(
        "t",
        "text",
        ["good " + "x" * n for n in range(40)] + ["bad " + "y" * n for n in range(40)],
        torch.arange(80) // 40,
        ("g", "b"),
        tuple(map(str, range(80))),
    )
    found = lowdim.rank(texts, method={"name": "sebra", "epochs": 60})
    assert found.ranks.settings["lr"] == api.RATES["text"]
    assert found.sign.p is None or 0 < found.sign.p <= 1
    assert "text" in found.shown["classes"][0]["first"][0]


@pytest.mark.parametrize("name", [name for name in registry.names("selector") if name != "sebra"])
def test_every_selector_ranks_and_has_a_sheet(name: str, tmp_path: Path) -> None:
    found = lowdim.rank(source(), method={"name": name, "epochs": 2}, out=tmp_path / "ranks")
    assert found.out is not None and found.ranks.method and len(found.ranks) == 240
    assert "<title>made" in build(found.out).read_text()


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"net": "mpl"}, "Did you mean 'mlp'"),
        ({"net": "text"}, "net 'text' does not take image data, .* mlp, conv, efficientnet-lite0"),
        ({"net": "minilm"}, "net 'minilm' encodes text data"),
        ({"tune": True}, "tune trains an encoder as well"),
        ({"method": "sebro"}, "Did you mean 'sebra'"),
        ({"method": {"name": "sebra", "p_crit": 2}}, "p_crit must be at least 0 and below 1"),
    ],
)
def test_what_cannot_be_is_refused(wrong: dict[str, object], match: str) -> None:
    with pytest.raises(RecipeError, match=match):
        lowdim.rank(source(), **wrong)
