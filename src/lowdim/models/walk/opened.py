"""A causal LM opened as a stream of blocks, wherever it is: in memory, in a directory, on the hub, in a GGUF file."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lowdim.core.errors import LowdimError, NumericalError
from lowdim.models.disk.adapters import check_model
from lowdim.models.disk.checkpoint import Checkpoint
from lowdim.models.disk.source import Source, resolve
from lowdim.models.load import lacking, load, read_placed, read_tokenizer
from lowdim.models.slorb import put_beside
from lowdim.models.walk.skeleton import empty_model
from lowdim.models.walk.stream import Stream, compute_dtype


@dataclass(frozen=True)
class Opened:
    """A model whose blocks can be walked.

    Attributes:
        stream: the model's blocks.
        source: where a checkpoint was found; ``None`` for a model in memory.
        checkpoint: the weights on disk; ``None`` for a model in memory.
        stored: dtype of the weights.
    """

    stream: Stream
    source: Source | None
    checkpoint: Checkpoint | None
    stored: torch.dtype

    @property
    def config(self) -> Any:
        """The model's configuration."""
        return self.stream.model.config

    @property
    def name(self) -> str:
        """How the user named the model."""
        if self.source:
            return self.source.spec
        name: str = self.config.name_or_path or type(self.stream.model).__name__
        return name

    def check_weights(self) -> None:
        """Read every weight once and refuse what no forward pass survives, before anything is computed.

        Raises:
            NumericalError: a tensor holds NaN or Inf, or numbers too large for the dtype that was asked for.
            LowdimError: a weight of a model in memory is on the meta device.
        """
        stream, checkpoint = self.stream, self.checkpoint
        if stream.skeleton is None or checkpoint is None:
            for name, parameter in stream.model.named_parameters():
                if parameter.is_meta:
                    raise _empty(name)
                _check_finite(name, parameter.detach(), None)
            return
        parameters = dict(stream.model.named_parameters(remove_duplicate=False))
        for name in checkpoint.names():
            if stream.skeleton.parameter_of(name) in parameters:
                _check_finite(name, checkpoint.read(name), stream.skeleton.dtype)

    @property
    def ranks(self) -> dict[str, int]:
        """The ranks of weights that are stored as two factors, by the name that they have in the model."""
        stream, checkpoint = self.stream, self.checkpoint
        if stream.skeleton is None or checkpoint is None:
            return {}
        return {stream.skeleton.parameter_of(name): rank for name, rank in checkpoint.ranks.items()}

    @property
    def stored_numel(self) -> int:
        """Weights of the whole model as they are stored: of a product, those of its factors."""
        shapes = {n: self.checkpoint.info(n).shape for n in self.checkpoint.ranks} if self.checkpoint else {}
        ranks = self.checkpoint.ranks if self.checkpoint else {}
        return self.stream.numel() - sum(m * n - ranks[name] * (m + n) for name, (m, n) in shapes.items())

    def tokenizer(self) -> Any:
        """Return the tokenizer that lies beside the weights, ``None`` if there is none."""
        return None if self.source is None else read_tokenizer(self.source.path, self.source.trusted)


def _empty(name: str) -> LowdimError:
    return LowdimError(
        f"{name} of the model in memory has no numbers: it is on the meta device, where device_map leaves what it "
        "offloads. Load the model without device_map, or give the path of its checkpoint."
    )


def _check_finite(name: str, tensor: Tensor, wanted: torch.dtype | None) -> None:
    if tensor.is_meta or not tensor.is_floating_point() or not tensor.numel():
        return
    low, high = (float(end) for end in tensor.float().aminmax())  # NaN and Inf come through
    if not (math.isfinite(low) and math.isfinite(high)):
        raise NumericalError(f"tensor {name!r} holds NaN or Inf. Repair the checkpoint: no model computes with it.")
    if wanted is not None and max(-low, high) > torch.finfo(wanted).max:
        limit = str(wanted).removeprefix("torch.")
        raise NumericalError(
            f"tensor {name!r} holds {high if high > -low else low:g}, more than {limit} can. Leave dtype out, or take "
            "dtype='bfloat16'."
        )


def accepted(model: Any) -> PreTrainedModel | str:
    """Return a model in memory as it is and the name of any other as text.

    Raises:
        LowdimError: it is neither.

    Example:
        >>> accepted(Path("models/tiny"))
        'models/tiny'
    """
    check_model(model)
    if isinstance(model, PreTrainedModel):
        return model
    if isinstance(model, str | Path):
        return str(model)
    inner = next((name for name in ("_orig_mod", "module") if hasattr(model, name)), None)
    hint = f" Give the model that it wraps, its .{inner}." if inner else ""
    raise LowdimError(
        f"model must be a Transformers model, or the path or hub id of one; got {type(model).__name__}.{hint}"
    )


def pick_device(requested: str) -> torch.device:
    """Return the device that a name means; "auto" is a GPU where there is one."""
    if requested == "cuda" and not torch.cuda.is_available():
        raise LowdimError("device='cuda' was asked for, and torch sees no GPU. Use device='auto' or 'cpu'.")
    return torch.device("cuda" if requested != "cpu" and torch.cuda.is_available() else "cpu")


def open_model(
    model: PreTrainedModel | str | Path,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    compute: str = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
    placed: bool = False,
) -> Opened:
    """Open a model; of a checkpoint no weight is read, unless its norms stand elsewhere than in its class.

    Args:
        model: a Transformers model, or whatever `lowdim.models.disk.source.resolve` finds.
        revision: branch, tag or commit of a hub id.
        dtype: of the weights as they are read, "auto" for that of the checkpoint; a model in memory keeps its own.
        compute: dtype of the forwards of a checkpoint's blocks.
        device: where a checkpoint's blocks run.
        trust_remote_code: run the modelling code that a checkpoint brings along.
        placed: whether a checkpoint may have a placement (`lowdim.nn.placement`), or layers of two factors; it is then
            read as a whole. Without, weights that are stored as factors are their products.

    Raises:
        LowdimError: the model cannot be used.
    """
    model = accepted(model)
    if isinstance(model, PreTrainedModel):
        if bare := next((name for name, buffer in model.named_buffers() if buffer.is_meta), None):
            raise _empty(bare)
        return Opened(Stream(model), None, None, next(model.parameters()).dtype)
    source = resolve(model, revision=revision, dtype=dtype, trust_remote_code=trust_remote_code)
    checkpoint = Checkpoint(source.path)
    stored = getattr(torch, source.dtype)
    assert isinstance(stored, torch.dtype)
    where = pick_device(device)
    run = compute_dtype(compute, stored, where)
    if placed and (checkpoint.ranks or read_placed(source.path, trust_remote_code)[1] is not None):
        whole = load(source.path, run, where, trust_remote_code, factors=True)
        return Opened(Stream(whole), source, None, stored)
    empty = empty_model(source.path, stored, trust_remote_code, run)
    put_beside(empty, {name: checkpoint.info(name).shape for name in checkpoint.names()})
    stream = Stream(
        empty,
        checkpoint,
        stored=None if dtype == "auto" else stored,
        compute=run,
        device=where,
    )
    assert stream.skeleton is not None
    if absent := stream.skeleton.missing():
        raise lacking(source.path, absent)
    return Opened(stream, source, checkpoint, stored)
