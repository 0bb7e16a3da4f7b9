"""Many sparse networks over one set of weights: which weights each keeps, and norm statistics of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from lowdim.core.errors import CheckpointError, LowdimError, suggest
from lowdim.core.masks import Masks, read_tensors
from lowdim.models.disk.checkpoint import Checkpoint
from lowdim.models.disk.writer import Writer, write_tensors
from lowdim.models.save import save_model
from lowdim.models.ticket import Ticket

FILE, DENSE = "subnets.safetensors", "dense"
_WEIGHTS = "model.safetensors"
_SEPARATOR = "|"


@dataclass(frozen=True, eq=False)
class Subnet:
    """One network of several.

    Attributes:
        pattern: what its masks are, such as "unstructured" or "2:4"; "dense" has none.
        masks: which of the shared weights it keeps, by parameter name.
        buffers: its norm statistics, by buffer name.
        score: validation score, higher is better, if one was measured.
    """

    pattern: str
    masks: Masks
    buffers: Mapping[str, Tensor] = field(default_factory=dict)
    score: float | None = None

    @property
    def sparsity(self) -> float:
        """Share of zeros over the masked weights."""
        return self.masks.sparsity() if len(self.masks) else 0.0


@dataclass(frozen=True, eq=False)
class Subnets:
    """Shared weights and the networks that are in them.

    Attributes:
        state: name -> tensor, the shared parameters and buffers; none of them is masked.
        nets: the networks by name; "dense" is all of it.

    Example:
        >>> import torch
        >>> model = nn.Linear(2, 1, bias=False)
        >>> half = Subnet("unstructured", Masks.from_dict({"weight": torch.tensor([[True, False]])}))
        >>> nets = Subnets(Ticket.of(model, {}).state, {"half": half})
        >>> nets.apply_(model, "half")
        >>> model.weight[0, 1].item(), nets["half"].sparsity
        (0.0, 0.5)
    """

    state: Mapping[str, Tensor]
    nets: Mapping[str, Subnet]

    def __getitem__(self, name: str) -> Subnet:
        """Return a network by name.

        Raises:
            LowdimError: there is none of that name.
        """
        if name not in self.nets:
            raise LowdimError(f"no subnet is named {name!r}. {suggest(name, self.nets)}")
        return self.nets[name]

    def ticket(self, name: str) -> Ticket:
        """Return one network by itself, off the mask +0.0, with norm statistics of its own."""
        return masked({**self.state, **self[name].buffers}, self[name].masks).scored(self[name].score)

    def apply_(self, model: nn.Module, name: str) -> None:
        """Let a model of the same structure be one of the networks, in place."""
        self.ticket(name).apply_(model)

    def save(self, out: str | Path, model: nn.Module, tokenizer: Any = None, *, overwrite: bool = False) -> Path:
        """Write one directory: the shared weights as a checkpoint, and ``subnets.safetensors`` beside them.

        A model of Transformers gives a stock directory, which loads as the dense network; any other module
        ``model.safetensors``. ``lowdim convert DIR OUT --subnet NAME`` writes one of the networks.

        Args:
            out: the directory to appear.
            model: of this structure; it gets the shared weights.
            tokenizer: of the model, if it has one.
            overwrite: replace an existing directory.
        """
        Ticket(self.state, Masks()).apply_(model)
        with Writer(out, overwrite=overwrite) as writer:
            directory = writer.directory
            if isinstance(model, PreTrainedModel):
                save_model(model, tokenizer, directory.partial)
            else:
                write_tensors(directory, _WEIGHTS, {name: tensor.contiguous() for name, tensor in self.state.items()})
            tensors, about = self._packed()
            write_tensors(directory, FILE, tensors, {"lowdim": json.dumps(about)})
            return directory.finish()

    def _packed(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors: dict[str, Tensor] = {}
        about: dict[str, Any] = {"subnets": 1, "nets": {}}
        for name, net in self.nets.items():
            tensors |= {_key(name, "mask", weight): net.masks.packed(weight) for weight in net.masks}
            tensors |= {_key(name, "buffer", buffer): value.contiguous() for buffer, value in net.buffers.items()}
            about["nets"][name] = {
                "pattern": net.pattern,
                "score": net.score,
                "shapes": {weight: list(net.masks.shape(weight)) for weight in net.masks},
                "buffers": list(net.buffers),
            }
        return tensors, about

    @classmethod
    def load(cls, path: str | Path) -> Subnets:
        """Read a directory that ``save`` wrote; of tied weights there is the one that is stored.

        Raises:
            CheckpointError: there are no subnets in it, or a file is damaged.
        """
        checkpoint = Checkpoint(path)
        return cls({name: checkpoint.read(name) for name in checkpoint.names()}, read_nets(path))


def read_nets(path: str | Path) -> dict[str, Subnet]:
    """Return the networks of a directory, without the weights that they share.

    Raises:
        CheckpointError: there are none in it, or the file is damaged.
    """
    file = Path(path) / FILE
    if not file.exists():
        raise CheckpointError(f"{path} holds no {FILE}: it is one network. Leave --subnet out, or take another model.")
    try:
        tensors, about = read_tensors(file, "subnets")
        return {name: _unpacked(name, net, tensors) for name, net in about["nets"].items()}
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{file} does not hold subnets saved by lowdim: {error}") from error


def _unpacked(name: str, about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Subnet:
    masks = Masks()
    words = {weight: tensors[_key(name, "mask", weight)] for weight in about["shapes"]}
    masks.load_state_dict({"shapes": about["shapes"], "words": words})
    buffers = {buffer: tensors[_key(name, "buffer", buffer)] for buffer in about["buffers"]}
    return Subnet(about["pattern"], masks, buffers, about["score"])


def _key(*parts: str) -> str:
    return _SEPARATOR.join(parts)


def masked(state: Mapping[str, Tensor], masks: Masks) -> Ticket:
    """Return shared weights with one network's masks; the masked tensors alone are copied."""
    own = {name: tensor.clone() if name in masks else tensor for name, tensor in state.items()}
    masks.apply_(own)
    return Ticket(own, masks)


def extract(source: str | Path, name: str, out: str | Path, *, overwrite: bool = False) -> Path:
    """Write one network of a directory of several as an ordinary checkpoint, shard by shard.

    Args:
        source: a directory that `Subnets.save` wrote.
        name: of the network.
        out: the directory to appear.
        overwrite: replace an existing directory.

    Raises:
        CheckpointError: there are no subnets, or none of that name, or they are not of these weights.
    """
    checkpoint, nets = Checkpoint(source), read_nets(source)
    if name not in nets:
        raise CheckpointError(f"no subnet of {source} is named {name!r}. {suggest(name, nets)}")
    net = nets[name]
    if lost := next((each for each in [*net.masks, *net.buffers] if each not in checkpoint), None):
        raise CheckpointError(f"{source} has a mask of {lost}, and no such weight: its {FILE} is of another model.")
    with Writer(out, overwrite=overwrite) as writer:
        try:
            writer.directory.require_space(sum(checkpoint.info(each).nbytes for each in checkpoint.names()))
            for file in (each for each in checkpoint.files if each.endswith(".safetensors")):
                names = [each for each in checkpoint.names() if checkpoint.info(each).file == file]
                tensors = {each: net.buffers.get(each, checkpoint.read(each)) for each in names}
                own = Masks.from_dict({each: net.masks[each] for each in names if each in net.masks})
                own.apply_(tensors)
                writer.write_shard(file, tensors, checkpoint.metadata_of(file))
            for companion in checkpoint.companions():
                writer.directory.copy(checkpoint.path / companion)
            return writer.finish()
        except BaseException:
            writer.directory.reset()
            raise
