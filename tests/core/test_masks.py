import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from lowdim.core.errors import CheckpointError, LowdimError
from lowdim.core.masks import Masks, zero_


def random_mask(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5


@pytest.fixture
def masks():
    return Masks.from_dict({"b": random_mask(3, 130), "a": random_mask(4, 5, 3, 3, seed=1), "bias": random_mask(7)})


@given(st.lists(st.integers(0, 9), min_size=1, max_size=4), st.integers(0, 1000))
def test_every_shape_comes_back(shape, seed):
    mask = random_mask(*shape, seed=seed)
    masks = Masks.from_dict({"x": mask})
    assert torch.equal(masks["x"], mask)
    assert masks.kept() == int(mask.sum())
    assert masks.shape("x") == tuple(shape)


def test_it_is_a_mapping(masks):
    assert list(masks) == ["b", "a", "bias"]
    assert len(masks) == 3
    assert "a" in masks
    assert masks.get("c") is None
    assert masks.packed("b").shape == (3, 4)
    with pytest.raises(KeyError):
        masks["c"]


def test_counts_by_hand():
    masks = Masks.from_dict({"x": torch.tensor([[True, False]]), "y": torch.ones(2, 3, dtype=torch.bool)})
    assert masks.density("x") == 0.5
    assert masks.density() == 7 / 8
    assert masks.sparsity("y") == 0
    assert repr(masks) == "Masks(2 layers, 7 of 8 weights kept)"
    assert Masks().density() == 1


def test_apply_to_a_module_writes_positive_zeros():
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    model[0].weight.data.fill_(-1.0)
    mask = random_mask(3, 4)
    Masks.from_dict({"0": mask}).apply_(model)
    weight = model[0].weight.detach()
    assert torch.equal(weight != 0, mask)
    assert not torch.signbit(weight[~mask]).any()


def test_apply_finds_shared_weights_by_any_name():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    Masks.from_dict({"1": torch.eye(2) > 0}).apply_(model)
    assert int((model[0].weight == 0).sum()) == 2


def test_apply_to_a_state_dict_in_its_own_dtype():
    state = {"l.weight": -torch.ones(3, 4, dtype=torch.bfloat16), "other": torch.ones(1)}
    mask = random_mask(3, 4)
    Masks.from_dict({"l.weight": mask}).apply_(state)
    assert state["l.weight"].dtype == torch.bfloat16
    assert torch.equal(state["l.weight"] != 0, mask)


def test_nothing_changes_when_one_layer_does_not_fit():
    state = {"a": torch.ones(2, 2), "b": torch.ones(2, 3)}
    masks = Masks.from_dict({"a": torch.zeros(2, 2, dtype=torch.bool), "b": torch.zeros(2, 2, dtype=torch.bool)})
    with pytest.raises(LowdimError, match="another model"):
        masks.apply_(state)
    assert bool(state["a"].all())
    with pytest.raises(LowdimError, match=r"Did you mean 'layer\.1\.weight'"):
        Masks.from_dict({"layer.2": random_mask(2, 2)}).apply_({"layer.1.weight": torch.ones(2, 2)})


def test_hash_ignores_order_and_sees_every_bit_name_and_shape(masks):
    again = Masks.from_dict({name: masks[name] for name in reversed(list(masks))})
    assert again.hash() == masks.hash()
    assert again == masks
    flipped = masks["b"]
    flipped[2, 129] ^= True
    assert Masks.from_dict({"b": flipped}).hash("b") != masks.hash("b")
    assert Masks.from_dict({"c": masks["b"]}).hash() != Masks.from_dict({"b": masks["b"]}).hash()
    row, column = torch.ones(1, 2, dtype=torch.bool), torch.ones(2, 1, dtype=torch.bool)
    assert Masks.from_dict({"x": row}).hash("x") != Masks.from_dict({"x": column}).hash("x")


def test_hash_is_the_same_everywhere():
    # sha256 of b"[1, 4]" and the words 13, 0 as little-endian int64
    mask = torch.tensor([[True, False, True, True]])
    assert Masks.from_dict({"x": mask}).hash("x") == "3b3c67d6855b895d1207f6e22e5c38480e6478d3e1be062e13d66b8965f22bc7"


def test_state_dict_resumes(masks, tmp_path):
    torch.save({"masks": masks.state_dict()}, tmp_path / "state.pt")
    other = Masks.from_dict({"old": random_mask(1, 1)})
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True)["masks"])
    assert other == masks
    assert list(other) == list(masks)


def test_save_and_load(masks, tmp_path):
    path = tmp_path / "masks.safetensors"
    masks.save(path)
    assert Masks.load(path) == masks
    first = path.read_bytes()
    masks.save(path)
    assert path.read_bytes() == first
    assert [p.name for p in tmp_path.iterdir()] == ["masks.safetensors"]


def test_save_leaves_the_old_file_when_it_fails(masks, tmp_path, monkeypatch):
    path = tmp_path / "masks.safetensors"
    masks.save(path)
    before = path.read_bytes()

    def fail(*_args, **_kwargs):
        raise OSError("disk full")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        Masks().save(path)
    assert path.read_bytes() == before


def test_damaged_files_are_refused(masks, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"no masks")
    with pytest.raises(CheckpointError, match=r"x\.safetensors"):
        Masks.load(path)
    save_file({"a": torch.ones(2)}, path)
    with pytest.raises(CheckpointError, match="does not hold masks"):
        Masks.load(path)
    state = copy.deepcopy(masks.state_dict())
    state["words"]["b"] = state["words"]["b"][:, :2]
    with pytest.raises(CheckpointError, match="do not fit"):
        Masks().load_state_dict(state)
    del state["words"]["b"]
    with pytest.raises(CheckpointError, match="different layers"):
        Masks().load_state_dict(state)


def test_replacing_one_layer(masks):
    masks.add("b", torch.ones(1, 2, dtype=torch.bool))
    assert masks.density("b") == 1
    assert len(masks) == 3


@pytest.mark.parametrize("made", ["missing", "folder", "training"])
def test_what_holds_no_masks_is_refused(masks, tmp_path, made):
    path = tmp_path / "out"
    if made != "missing":
        path.mkdir()
    if made == "training":
        masks.save(path / "sparse.masks.safetensors")
        (path / "training.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"neither a file nor a directory|no output of lowdim prune"):
        Masks.load(path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int32])
def test_zeros_are_written_to_the_bit_in_place(dtype):
    weight = torch.randn(6, 10).mul(9).to(dtype).t()  # not contiguous
    if dtype.is_floating_point:
        weight[0, :3] = torch.tensor([float("nan"), float("inf"), -0.0])
    off = torch.rand(10, 6) < 0.5
    off[0, :3] = True
    expected, version = weight.masked_fill(off, 0), weight._version
    zero_(weight, off)
    size = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    assert torch.equal(weight.view(size), expected.view(size))
    assert weight._version > version
    parameter = torch.nn.Parameter(torch.ones(2))
    with torch.no_grad():
        zero_(parameter, torch.tensor([True, False]))
    assert parameter.tolist() == [0.0, 1.0]
    assert parameter._version > 0
