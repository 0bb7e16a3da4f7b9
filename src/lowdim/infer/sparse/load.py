"""A checkpoint as a model with sparse layers, read tensor by tensor; what is stored packed is never made dense."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lowdim.core.errors import CheckpointError, LowdimError, NumericalError
from lowdim.infer.sparse.accelerate import (
    Rules,
    finish,
    give_back_memory,
    head_of,
    replace,
    swap_experts,
)
from lowdim.infer.sparse.choose import settle
from lowdim.infer.sparse.experts import ExpertList, is_fused
from lowdim.infer.sparse.linear import SparseLinear
from lowdim.infer.sparse.matrix import Matrix
from lowdim.infer.sparse.storage import KIND_OF, QUANTISED, kind_of
from lowdim.models import load as stock
from lowdim.models.disk.checkpoint import Checkpoint
from lowdim.models.disk.factors import Factors
from lowdim.models.disk.source import Source, resolve
from lowdim.models.slorb import put_beside
from lowdim.models.structure.layers import find_layers
from lowdim.models.walk.skeleton import Skeleton, empty_weights, hold_in_fp32, in_fp32
from lowdim.nn.slorb import hand_over

_TORCH = {"fp32": torch.float32, "bf16": torch.bfloat16}
_PORTION = 32 << 20  # bytes
_CONVERTED = 4 << 20  # weights


class Stack(nn.ModuleList):
    """Layers with the same input, their outputs side by side."""

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[..., in]`` to ``[..., sum of out]``."""
        return torch.cat([layer(x) for layer in self], -1)


def load(
    path: str | Path,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device = "cpu",
    group: int = 64,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Load a causal LM in evaluation mode; a packed checkpoint for inference on the CPU, without ever making it dense.

    | stored | dtype | the model |
    |---|---|---|
    | dense | None, fp32, bf16 | a stock Transformers model, that can be trained and saved |
    | dense | int8, int4, int3 | sparse layers, rounded one by one while they are read |
    | packed | None | sparse layers with the numbers as they are stored |
    | factors | None, fp32, bf16 | one with `lowdim.nn.lowrank.LowRankLinear` layers, that can be trained |
    | factors | int8, int4, int3 | two sparse layers in the place of each, rounded one by one |
    | packed | any | sparse layers, converted one by one; a layer that is stored in this kind stays as it is |

    Sparse layers (`SparseLinear`) need about the memory that the files have: weights are copied out of the files one
    after another. They are not mapped: when the system reclaims mapped pages, a model can slow down eightfold. fp16 is
    held as fp32, which no kernel rounds; ask for bf16 to halve that. A head that is tied to the embedding shares its
    memory, unless it is to be int8 (which int4 and int3 mean too, for the head). On another device than the CPU a
    packed checkpoint is decoded to a stock model.

    Args:
        path: a checkpoint directory, dense or packed, a ``.gguf`` file, a hub id, or ``builtin:smollm2-135m``.
        dtype: "fp32", "bf16", "int8", "int4" or "int3", or the torch type of the first two; ``None`` is as stored.
        device: where the model goes.
        group: columns per scale where weights are rounded to int8, int4 or int3, 64 or 128.
        trust_remote_code: run the modelling code that the checkpoint brings along.

    Raises:
        CheckpointError: the directory is damaged, or its weights are not those that its config asks for.
        LowdimError: an unknown dtype, or one that the device has no kernels for.
    """
    kind = None if dtype is None else kind_of(dtype)
    source, on_cpu = _find(path, trust_remote_code), torch.device(device).type == "cpu"
    checkpoint = Checkpoint(source.path)
    if kind in QUANTISED and not on_cpu:
        raise LowdimError(
            f"{kind} layers run on the CPU only, got device={str(device)!r}. Use dtype='bf16' there, or device='cpu'."
        )
    if not on_cpu or (not _skips(checkpoint) and kind not in QUANTISED):
        model = stock.load(source.path, _TORCH.get(kind or ""), device, trust_remote_code, factors=True)
    else:
        with stock.quiet():
            model = _Loader(checkpoint, source.dtype, kind, group).model(trust_remote_code)
    model.config._name_or_path = str(path)
    return model


def _skips(checkpoint: Checkpoint) -> bool:
    """Tell whether weights are stored in a way that kernels skip zeros of, or codes."""
    forms = [checkpoint.form(name) for name in checkpoint.names()]
    return any(form is not None and form.rank is None for form in forms)


def _find(path: str | Path, trust_remote_code: bool) -> Source:
    found = Path(path).expanduser()
    if isinstance(path, Path) or found.with_name(f"{found.name}.partial").is_dir():
        Checkpoint(found)  # says what is wrong with it; a path is no hub id
    return resolve(str(path), trust_remote_code=trust_remote_code)


class _Loader:
    """Fills a model from a checkpoint: its Linears with `SparseLinear`, everything else as Transformers does."""

    def __init__(self, checkpoint: Checkpoint, dtype: str, kind: str | None, group: int) -> None:
        self._checkpoint, self._kind, self._group = checkpoint, kind, group
        self._dtype: torch.dtype = _TORCH.get(kind or "") or getattr(torch, dtype)
        self._converted = 0
        self._rules(self._dtype)  # checks the group

    def model(self, trust_remote_code: bool) -> PreTrainedModel:
        """Build the model and fill it part by part."""
        path = self._checkpoint.path
        config = stock.read_config(path, trust_remote_code)
        with empty_weights():
            model: PreTrainedModel = AutoModelForCausalLM.from_config(
                config, dtype=self._dtype, trust_remote_code=trust_remote_code
            )
        put_beside(model, {name: self._checkpoint.info(name).shape for name in self._checkpoint.names()})
        hold_in_fp32(model.state_dict(keep_vars=True).items(), in_fp32(model, self._dtype))
        skeleton = Skeleton(model, self._checkpoint, self._dtype)
        parts = _sort(model, skeleton, self._checkpoint)
        for names in _portions(self._checkpoint, skeleton, parts.rest):
            skeleton.fill(self._checkpoint, names)
        model.tie_weights()
        self._check_complete(model, {skeleton.parameter_of(n) for n in [*parts.linears, *parts.experts]})
        self._place_linears(model, skeleton, parts.linears)
        self._place_experts(model, skeleton, parts.experts)
        for name, module in list(model.named_modules()):
            if is_fused(module):
                swap_experts(model, name, module, self._rules(self._dtype))
        if (path / "generation_config.json").exists():
            model.generation_config = GenerationConfig.from_pretrained(path, local_files_only=True)
        finish(model.eval())
        return model

    def _rules(self, stored: torch.dtype) -> Rules:
        """Return how to store numbers that come in a type."""
        kind = self._kind or _as_stored(stored)
        return Rules(kind, self._group, None)

    def _check_complete(self, model: nn.Module, to_come: set[str]) -> None:
        missing = sorted(n for n, p in model.named_parameters() if p.is_meta and n not in to_come)
        if missing:
            raise stock.lacking(self._checkpoint.path, missing)

    def _place_linears(self, model: PreTrainedModel, skeleton: Skeleton, names: list[str]) -> None:
        head, tied = head_of(model)
        for name in names:
            linear = model.get_submodule(skeleton.parameter_of(name).removesuffix(".weight"))
            assert isinstance(linear, nn.Linear | Conv1D)
            if name in self._checkpoint.ranks:
                replace(model, linear, self._pair(name, linear.bias))
                continue
            turned, rules = isinstance(linear, Conv1D), self._rules(self._checkpoint.info(name).dtype)
            matrix = self._matrix(name, linear.bias, rules.for_head(None) if linear is head else rules, turned)
            shape = linear.weight.shape[::-1] if turned else linear.weight.shape
            self._check_shape(name, matrix, shape)
            sparse = SparseLinear(matrix)
            sparse.shown = self._dtype if self._dtype in KIND_OF else None
            hand_over(linear, sparse)
            replace(model, linear, sparse)
        if head is not None and tied is not None and tied.dtype != torch.float16:
            assert isinstance(head, nn.Linear)
            rules = self._rules(tied.dtype).for_head(tied)
            replace(model, head, SparseLinear(rules.matrix(tied.detach(), head.bias)))

    def _matrix(self, name: str, bias: Tensor | None, rules: Rules, turned: bool = False) -> Matrix:
        """Read a weight; ``turned``: the layer keeps ``[in, out]``."""
        form, bias = self._checkpoint.form(name), None if bias is None else bias.detach().float()
        if form is not None and form.transposed == turned:
            stored = form.grid.name if form.grid else _as_stored(form.dtype)
            if self._kind is None or rules.kind == stored:
                return self._as_it_is(name, bias)
        weight = self._checkpoint.read(name)
        self._converted += weight.numel()
        if self._converted > _CONVERTED:
            give_back_memory()
            self._converted = 0
        try:
            return rules.matrix(weight.t() if turned else weight, bias)
        except NumericalError as error:
            raise NumericalError(f"{name!r} cannot be quantised: {error}") from error

    def _pair(self, name: str, bias: Tensor | None) -> nn.Sequential:
        """Return the layers of a weight that is stored as two factors."""
        stored = self._checkpoint.as_stored(name)
        assert isinstance(stored, Factors)
        rules, bias = self._rules(stored.a.dtype), None if bias is None else bias.detach().float()
        b, a = SparseLinear(rules.matrix(stored.b, None)), SparseLinear(rules.matrix(stored.a, bias))
        return nn.Sequential(OrderedDict(b=b, a=a))

    def _as_it_is(self, name: str, bias: Tensor | None) -> Matrix:
        try:
            matrix = Matrix.from_packed(self._checkpoint.read_packed(name), bias)
            return matrix if matrix.mask is None else settle(matrix, matrix.dense)
        except CheckpointError as error:
            raise CheckpointError(f"{self._checkpoint.info(name).file}: {name!r} is damaged: {error}") from error

    def _check_shape(self, name: str, matrix: Matrix, wanted: Sequence[int]) -> None:
        found = [matrix.rows, matrix.cols]
        if found != list(wanted):
            raise CheckpointError(
                f"{self._checkpoint.path} does not fit its config.json: {name!r} is {found}, the config asks for "
                f"{list(wanted)}. Check that both come from the same model."
            )

    def _place_experts(self, model: PreTrainedModel, skeleton: Skeleton, names: list[str]) -> None:
        """Fill experts, whose gate and up matrices Transformers would stack, as they lie on disk."""
        held: dict[tuple[str, int, str], dict[int, SparseLinear]] = defaultdict(dict)
        for name in names:
            module, _, target = skeleton.parameter_of(name).rpartition(".")
            part = skeleton.expert_part(name)
            assert part is not None
            rules = self._rules(self._checkpoint.info(name).dtype)
            held[module, part[0], target][part[1]] = SparseLinear(self._matrix(name, None, rules))
        for module in dict.fromkeys(module for module, _, _ in held):
            fused = model.get_submodule(module)
            opened = ExpertList(fused)
            for index, expert in enumerate(opened):
                for target, linear in list(expert.named_children()):
                    layers = [layer for _, layer in sorted(held[module, index, target].items())]
                    self._check_expert(f"{module}.{index}.{target}", layers, linear)
                    setattr(expert, target, layers[0] if len(layers) == 1 else Stack(layers))
            replace(model, fused, opened)

    def _check_expert(self, name: str, layers: list[SparseLinear], linear: nn.Module) -> None:
        assert isinstance(linear, nn.Linear)
        if not layers:
            raise stock.lacking(self._checkpoint.path, [name])
        found = [sum(layer.out_features for layer in layers), layers[0].in_features]
        if found != list(linear.weight.shape):
            raise CheckpointError(
                f"{self._checkpoint.path} does not fit its config.json: the matrices of {name} make {found}, the "
                f"config asks for {list(linear.weight.shape)}. Check that both come from the same model."
            )


class _Parts(NamedTuple):
    """Names on disk: weights of Linears, matrices of experts, and everything else that the model has."""

    linears: list[str]
    experts: list[str]
    rest: list[str]


def _sort(model: nn.Module, skeleton: Skeleton, checkpoint: Checkpoint) -> _Parts:
    prunable, known = {f"{name}.weight" for name, _ in find_layers(model)[0]}, model.state_dict().keys()
    parts = _Parts([], [], [])
    for name in checkpoint.names():
        target = skeleton.parameter_of(name)
        if target in prunable and skeleton.is_whole(name):
            parts.linears.append(name)
        elif skeleton.expert_part(name) and is_fused(model.get_submodule(target.rpartition(".")[0])):
            parts.experts.append(name)
        elif target in known:
            parts.rest.append(name)
    return parts


def _portions(checkpoint: Checkpoint, skeleton: Skeleton, names: list[str]) -> Iterator[list[str]]:
    """Cut a list so that little is read at a time; what becomes one parameter stays together."""
    portion: list[str] = []
    size = 0
    for _, group in groupby(sorted(names, key=skeleton.parameter_of), skeleton.parameter_of):
        together = list(group)
        nbytes = sum(checkpoint.info(name).nbytes for name in together)
        if portion and size + nbytes > _PORTION:
            yield portion
            portion, size = [], 0
        portion, size = portion + together, size + nbytes
    if portion:
        yield portion


def _as_stored(dtype: torch.dtype) -> str:
    return "bf16" if dtype == torch.bfloat16 else "fp32"
