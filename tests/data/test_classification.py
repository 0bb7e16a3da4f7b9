"""Data sets: where they are cut, what they are scaled by, what is refused."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import pytest
import torch

from lowdim.data import classification, topics, vision
from lowdim.data.classification import Dataset, Kind, Known, cut
from lowdim.data.errors import DataError
from lowdim.data.labelled.source import Source
from lowdim.data.raw import Raw, Split, moments
from lowdim.data.select.ranks import samples_hash

TABLE = Known("t", "table", "none", "for tests")


def raw(count: int = 50, test: bool = False) -> Raw:
    x = torch.arange(count * 3, dtype=torch.float32).reshape(count, 3)
    y = torch.arange(count) % 2
    return Raw(x, y, ("even", "odd"), Split(x + 1, y) if test else None)


def test_the_three_parts_share_nothing_and_lose_nothing() -> None:
    data = cut(TABLE, raw(), validation=0.1, limit=None, seed=0)
    assert [len(split.y) for split in (data.train, data.validation, data.test)] == [36, 4, 10]
    parts = [torch.cat([s.y.unsqueeze(1), s.x], 1) for s in (data.train, data.validation, data.test)]
    assert len({tuple(row) for row in torch.cat(parts).tolist()}) == 50


def test_the_seed_moves_validation_and_never_test() -> None:
    one, two, again = (cut(TABLE, raw(), validation=0.2, limit=None, seed=seed) for seed in (0, 1, 0))
    assert one.fingerprint() == again.fingerprint() != two.fingerprint()
    assert torch.equal(one.test.y, two.test.y)
    assert not torch.equal(one.validation.x, two.validation.x)


def test_a_test_part_of_the_authors_stays_theirs() -> None:
    data = cut(TABLE, raw(test=True), validation=0.1, limit=None, seed=0)
    assert len(data.train.y) == 45
    assert torch.equal(data.test.y, raw().y)


def test_a_limit_takes_the_first_and_leaves_the_rest_alone() -> None:
    whole = cut(TABLE, raw(), validation=0.1, limit=None, seed=0)
    few = cut(TABLE, raw(), validation=0.1, limit=12, seed=0)
    assert torch.equal(few.train.y, whole.train.y[:12])
    assert torch.equal(few.validation.y, whole.validation.y)


def test_columns_are_scaled_by_what_is_trained_on() -> None:
    data = cut(TABLE, raw(), validation=0.1, limit=None, seed=0)
    assert torch.allclose(data.train.x.mean(0), torch.zeros(3), atol=1e-5)
    assert torch.allclose(data.train.x.std(0), torch.ones(3), atol=1e-5)
    assert not torch.allclose(data.test.x.mean(0), torch.zeros(3), atol=1e-3)


def test_a_constant_column_stays_finite() -> None:
    flat = Raw(torch.ones(20, 2), torch.arange(20) % 2, ("a", "b"))
    assert cut(TABLE, flat, validation=0.1, limit=None, seed=0).train.x.abs().max() == 0


def test_an_image_has_one_mean() -> None:
    image = Raw(torch.rand(40, 1, 2, 2) + torch.tensor([0.0, 5.0]), torch.arange(40) % 2, ("a", "b"))
    data = cut(Known("i", "image", "none", ""), image, validation=0.1, limit=None, seed=0)
    assert abs(float(data.train.x.mean())) < 1e-5
    assert float(data.train.x[..., 1].mean()) > 0.5


@pytest.mark.parametrize(("kind", "shape"), [("image", (3, 16, 16)), ("table", (50,))])
@pytest.mark.parametrize("place", ["built in", "own"])
def test_the_same_samples_have_the_same_bits_on_any_number_of_threads(
    place: str, kind: Kind, shape: tuple[int, ...]
) -> None:
    x = torch.rand(3000, *shape, generator=torch.Generator().manual_seed(0)) ** 3 + 1  # torch's own mean differs
    y, names = torch.arange(3000) % 2, ("a", "b")

    def made() -> Dataset:
        if place == "own":
            return Source("s", kind, x, y, names, tuple(map(str, range(3000)))).dataset()
        return cut(Known("s", kind, "none", ""), Raw(x, y, names), validation=0.1, limit=None, seed=0)

    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(made())
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0].train.x, found[1].train.x)
    assert samples_hash(found[0]) == samples_hash(found[1])
    assert found[0].fingerprint() == found[1].fingerprint()


def test_mean_and_deviation_are_of_all_samples() -> None:
    x = torch.rand(9000, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).float() + 100
    mean, deviation = moments(x, "table")
    assert torch.equal(mean, x.double().mean(0).float())
    torch.testing.assert_close(deviation, x.double().std(0).float(), rtol=1e-6, atol=0)
    assert moments(x, "image")[0].dim() == 0 and moments(x[:1], "table")[1].tolist() == pytest.approx([1e-6] * 3)


def test_words_come_from_training_alone() -> None:
    texts = [f"common word{i}" for i in range(40)]
    text = Raw(texts, torch.arange(40) % 2, ("a", "b"))
    data = cut(Known("w", "text", "none", ""), text, validation=0.1, limit=None, seed=0)
    # "word" and the number are two words: 1 common, 1 "word", and one number per training text
    assert data.vocabulary == 2 + 2 + len(data.train.y)
    assert set(data.test.x[:, 2].tolist()) == {1}
    assert set(data.test.x[:, 0].tolist()) == {2}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "digitz"}, "Did you mean 'digits'"),
        ({"validation": 0.0}, r"validation must be a share in \(0, 1\)"),
        ({"validation": 1.0}, r"validation must be a share in \(0, 1\)"),
        ({"limit": 0}, "limit must be at least 1"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        classification.load(**({"name": "digits"} | settings))  # type: ignore[arg-type]


def test_fewer_examples_than_classes_are_refused() -> None:
    with pytest.raises(DataError, match="would keep 1 examples"):
        cut(TABLE, raw(), validation=0.1, limit=1, seed=0)


@pytest.mark.parametrize(
    ("name", "shape", "counts", "classes"),
    [
        ("digits", (1, 8, 8), (1294, 144, 359), 10),
        ("breast-cancer", (30,), (409, 46, 114), 2),
        ("wine", (13,), (128, 14, 36), 3),
    ],
)
def test_what_comes_with_scikit_learn(name: str, shape: tuple[int, ...], counts: tuple[int, ...], classes: int) -> None:
    pytest.importorskip("sklearn")
    data = classification.load(name)
    assert data.shape == shape
    assert (len(data.train.y), len(data.validation.y), len(data.test.y)) == counts
    assert len(data.classes) == classes
    assert data.kind == classification.find(name).kind


def idx_file(path: Path, content: bytes) -> Path:
    path.write_bytes(gzip.compress(content))
    return path


def test_idx_by_hand(tmp_path: Path) -> None:
    file = idx_file(tmp_path / "x.gz", struct.pack(">HBB2I", 0, 8, 2, 2, 3) + bytes(range(6)))
    assert vision.idx(file).tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    "content",
    [struct.pack(">HBB2I", 0, 8, 2, 2, 3) + bytes(5), struct.pack(">HBBI", 0, 13, 1, 1) + bytes(4)],
    ids=["short", "floats"],
)
def test_idx_of_another_kind_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(DataError, match=r"x\.gz"):
        vision.idx(idx_file(tmp_path / "x.gz", content))


def test_texts_are_cut_at_the_length_and_filled_with_zeros() -> None:
    found = topics.encode(["b a c a", "a"], ["a", "b"], 3)
    assert found.tolist() == [[3, 2, 1], [2, 0, 0]]


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("name", "shape", "counts"),
    [
        ("fashion-mnist", (1, 28, 28), (54000, 6000, 10000)),
        ("mnist-5k", (1, 28, 28), (3600, 400, 1000)),
        ("wiki-topics", (128,), (1542, 171, 428)),
    ],
)
def test_what_is_fetched(name: str, shape: tuple[int, ...], counts: tuple[int, ...]) -> None:
    data = classification.load(name)
    assert data.shape == shape
    assert (len(data.train.y), len(data.validation.y), len(data.test.y)) == counts
    assert int(data.train.y.max()) == len(data.classes) - 1
