from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.models.zoo import ZOO

from lowdim.core.errors import CheckpointError
from lowdim.models.disk.checkpoint import Checkpoint
from lowdim.models.load import quiet
from lowdim.models.walk.skeleton import Skeleton, empty_model, masters, unload
from lowdim.models.walk.stream import Stream


def skeleton(kind: str, path: Path) -> tuple[Skeleton, Checkpoint]:
    with quiet():
        ZOO[kind]().save_pretrained(path)
        model = empty_model(path, torch.float32)
    checkpoint = Checkpoint(path)
    return Skeleton(model, checkpoint, torch.float32), checkpoint


@pytest.mark.parametrize("kind", ZOO)
def test_filled_part_by_part_it_holds_the_models_weights(kind: str, tmp_path: Path) -> None:
    made, checkpoint = skeleton(kind, tmp_path)
    assert all(parameter.is_meta for parameter in made.model.parameters())
    stream = Stream(made.model, checkpoint, stored=torch.float32, compute=torch.float32)
    parts = [made.disk_names(f"{stream.block_name(i)}.") for i in (2, 0, 1)] + [stream.outer_names()]
    assert sorted(name for part in parts for name in part) == sorted(checkpoint.names())
    for part in parts:
        made.fill(checkpoint, part)
    made.model.tie_weights()
    for name, parameter in ZOO[kind]().named_parameters():
        assert torch.equal(made.model.get_parameter(name), parameter), name


@pytest.mark.parametrize("kind", ZOO)
def test_parameters_go_back_to_the_names_and_bytes_on_disk(kind: str, tmp_path: Path) -> None:
    made, checkpoint = skeleton(kind, tmp_path)
    stream = Stream(made.model, checkpoint, stored=torch.float32, compute=torch.float32)
    prefix = f"{stream.block_name(1)}."
    made.fill(checkpoint, made.disk_names(prefix))
    parameters = {n: p for n, p in made.model.named_parameters() if n.startswith(prefix)}
    back = made.to_disk(parameters)
    assert sorted(back) == sorted(made.disk_names(prefix))
    assert all(torch.equal(tensor, checkpoint.read(name)) for name, tensor in back.items())


def test_one_experts_tensor_alone_goes_back(tmp_path: Path) -> None:
    made, checkpoint = skeleton("mixtral", tmp_path)
    made.fill(checkpoint, made.disk_names("model.layers.0."))
    name = "model.layers.0.mlp.experts.down_proj"
    back = made.to_disk({name: made.model.get_parameter(name)})
    assert len(back) == 4
    assert all(torch.equal(tensor, checkpoint.read(name)) for name, tensor in back.items())


def test_an_unknown_parameter_is_refused(tmp_path: Path) -> None:
    made, _ = skeleton("llama", tmp_path)
    with pytest.raises(CheckpointError, match=r"cannot name 'model\.layers\.7\.x' as the checkpoint does"):
        made.to_disk({"model.layers.7.x": torch.zeros(1)})


def test_a_tensor_of_another_shape_is_refused(tmp_path: Path) -> None:
    made, checkpoint = skeleton("llama", tmp_path)

    class Bent:
        def names(self) -> list[str]:
            return checkpoint.names()

        def read(self, name: str) -> torch.Tensor:
            return checkpoint.read(name)[:-1]

    with pytest.raises(CheckpointError, match=r"does not fit its config\.json: .*q_proj"):
        made.fill(Bent(), ["model.layers.0.self_attn.q_proj.weight"])


def test_masters_keep_the_dtype_that_the_module_gives_up(tmp_path: Path) -> None:
    made, checkpoint = skeleton("llama", tmp_path)
    made.fill(checkpoint, made.disk_names("model.layers.0."))
    block = made.model.get_submodule("model.layers.0")
    dtypes = {name: parameter.dtype for name, parameter in block.named_parameters()}
    held = masters(block, torch.bfloat16, torch.device("cpu"))
    assert {tensor.dtype for tensor in held.values()} == {torch.float32}
    assert {parameter.dtype for parameter in block.parameters()} == {torch.bfloat16}
    for name, parameter in block.named_parameters():
        assert torch.equal(parameter, held[name].bfloat16())
    unload(block, dtypes)
    assert all(p.is_meta and p.dtype == torch.float32 for p in block.parameters())


def test_buffers_are_real_from_the_start(tmp_path: Path) -> None:
    made, _ = skeleton("llama", tmp_path)
    expected = dict(ZOO["llama"]().named_buffers())
    found = dict(made.model.named_buffers())
    assert found
    assert all(torch.equal(found[name], expected[name]) for name in expected)
