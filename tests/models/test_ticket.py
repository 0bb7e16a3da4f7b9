from __future__ import annotations

import copy
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from tests.models.tickets import INPUTS, Tied, build, every_kind, mlp, random_masks, random_ticket
from tests.ranks import fork_ranks
from tests.train.tickets import ranked
from torch import nn

from lowdim.core.errors import CheckpointError, LowdimError
from lowdim.models.ticket import Ticket, borrowed, tensors
from lowdim.nn.csr.swap import sparse_


def same(first: Ticket, second: Ticket) -> bool:
    return (
        first.masks == second.masks
        and list(first.state) == list(second.state)
        and all(torch.equal(first.state[name], second.state[name]) for name in first.state)
        and (first.score, first.step) == (second.score, second.step)
    )


@every_kind
def test_holds_weights_buffers_and_masks_of_any_model(kind):
    model = build(kind)
    masks = random_masks(model)
    ticket = Ticket.of(model, masks, score=0.5, step=7)
    assert set(ticket.state) == {n for n, _ in model.named_parameters()} | {n for n, _ in model.named_buffers()}
    for name, mask in masks.items():
        assert torch.equal(ticket.state[name], dict(model.named_parameters())[name] * mask)
        assert torch.equal(ticket.masks[name], mask)
    other = build(kind, seed=1)
    held = [id(p) for p in other.parameters()]
    ticket.apply_(other)
    assert [id(p) for p in other.parameters()] == held
    ticket.masks.apply_(model)
    x = INPUTS[kind]()
    assert torch.equal(model.eval()(x), other.eval()(x))


def test_is_a_copy():
    model = mlp()
    ticket = Ticket.of(model, {})
    before = model[0].bias.detach().clone()
    with torch.no_grad():
        model[0].bias.add_(1)
    assert torch.equal(ticket.state["0.bias"], before)


def test_tied_weights_are_held_once_and_stay_tied(tmp_path):
    ticket = random_ticket("tied", 0)
    assert "embed.weight" in ticket.state
    assert "head.weight" not in ticket.state
    model = Tied()
    ticket.apply_(model)
    assert model.head.weight is model.embed.weight
    assert torch.equal(model.head.weight, ticket.state["embed.weight"])


def test_a_mask_of_a_tied_weight_goes_by_any_name_but_once():
    model = Tied()
    mask = torch.ones(11, 8, dtype=torch.bool)
    mask[0] = False
    assert list(Ticket.of(model, {"head.weight": mask}).masks) == ["embed.weight"]
    with pytest.raises(LowdimError, match=r"embed\.weight has two masks"):
        Ticket.of(model, {"head.weight": mask, "embed.weight": mask})


def test_names_of_a_compiled_or_wrapped_model_are_the_plain_ones():
    model = mlp()
    wrapped = nn.DataParallel(model)
    assert list(tensors(wrapped)) == list(tensors(model))
    Ticket.of(mlp(), {}).apply_(wrapped)


def test_truly_sparse_layers_give_dense_tickets():
    dense, masks = mlp(), random_masks(mlp())
    expected = Ticket.of(dense, masks)
    sparse = sparse_(copy.deepcopy(dense), masks)
    ticket = Ticket.of(sparse, masks)
    assert ticket.masks == expected.masks
    assert set(ticket.state) == set(expected.state)
    assert all(torch.equal(ticket.state[name], expected.state[name]) for name in expected.state)
    with pytest.raises(LowdimError, match="0 is a truly sparse layer"):
        ticket.apply_(sparse)


def test_refuses_masks_and_models_that_do_not_fit():
    model = mlp()
    with pytest.raises(LowdimError, match=r"'0\.weigth'.*Did you mean '0\.weight'"):
        Ticket.of(model, {"0.weigth": torch.ones(8, 6, dtype=torch.bool)})
    with pytest.raises(LowdimError, match="shape"):
        Ticket.of(model, {"0.weight": torch.ones(8, 5, dtype=torch.bool)})
    other = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    before = other[0].weight.detach().clone()
    with pytest.raises(LowdimError, match=r"2\.weight.*2 such tensors"):
        Ticket.of(model, {}).apply_(other)
    assert torch.equal(other[0].weight, before)
    with pytest.raises(LowdimError, match="does not fit the model"):
        Ticket.of(model, {}).apply_(Tied())


@every_kind
def test_save_and_load(kind, tmp_path):
    ticket = random_ticket(kind, 3).scored(0.1 + 0.2)
    path = tmp_path / "ticket.safetensors"
    ticket.save(path)
    assert same(Ticket.load(path), ticket)
    first = path.read_bytes()
    ticket.save(path)
    assert path.read_bytes() == first
    assert [p.name for p in tmp_path.iterdir()] == ["ticket.safetensors"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_save_keeps_dtypes_and_integers(dtype, tmp_path):
    model = build("conv").to(dtype)
    ticket = Ticket.of(model, random_masks(model))
    ticket.save(tmp_path / "t")
    loaded = Ticket.load(tmp_path / "t")
    assert loaded.state["0.weight"].dtype == dtype
    assert loaded.state["1.num_batches_tracked"].dtype == torch.int64
    assert same(loaded, ticket)


def test_a_sparse_ticket_is_small_on_disk(tmp_path):
    model = nn.Linear(256, 256, bias=False)
    mask = torch.zeros(256, 256, dtype=torch.bool)
    mask[:, :13] = True
    Ticket.of(model, {"weight": mask}).save(tmp_path / "t")
    # 5% of the values in fp32 and one bit for every weight
    assert (tmp_path / "t").stat().st_size < 256 * 13 * 4 + 256 * 256 / 8 + 1000


def test_state_dict_survives_torch_save(tmp_path):
    ticket = random_ticket("conv", 1).scored(0.25)
    torch.save(ticket.state_dict(), tmp_path / "t.pt")
    assert same(Ticket.from_state_dict(torch.load(tmp_path / "t.pt", weights_only=True)), ticket)


def test_killed_while_saving_leaves_the_old_file_whole(tmp_path):
    path = tmp_path / "ticket.safetensors"
    old = random_ticket("mlp", 1)
    old.save(path)
    script = f"""
        import os, signal, safetensors.torch
        real = safetensors.torch.save_file
        def half(tensors, filename, metadata=None):
            real(tensors, filename, metadata=metadata)
            os.truncate(filename, os.path.getsize(filename) // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        safetensors.torch.save_file = half
        from tests.models.tickets import random_ticket
        random_ticket("mlp", 2).save({str(path)!r})
    """
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, cwd=root)
    assert done.returncode == -9, done.stderr
    assert same(Ticket.load(path), old)
    new = random_ticket("mlp", 2)
    new.save(path)
    assert same(Ticket.load(path), new)
    assert [p.name for p in tmp_path.iterdir()] == ["ticket.safetensors"]


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "ticket.safetensors"
    random_ticket("mlp", 1).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"ticket\.safetensors does not hold a ticket"):
        Ticket.load(path)
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2)}, path)
    with pytest.raises(CheckpointError, match="does not hold a ticket"):
        Ticket.load(path)


def test_borrowed_gives_everything_back_even_after_an_error():
    model = build("conv")
    model.train()
    model[1].eval()
    before = {name: tensor.detach().clone() for name, tensor in tensors(model).items()}
    ticket = random_ticket("conv", 5)

    def overwrite():
        with borrowed(model):
            ticket.apply_(model)
            model.eval()
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        overwrite()
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors(model).items())
    assert model[0].training
    assert not model[1].training


@pytest.mark.slow
def test_sharded_models_give_and_take_whole_tickets(tmp_path):
    fork_ranks(ranked.main, (str(tmp_path),), 2)
    for index in range(2):
        first, second = (Ticket.load(tmp_path / f"{index}-{rank}") for rank in range(2))
        assert same(first, second)
        assert first.masks.sparsity() == 0.5
