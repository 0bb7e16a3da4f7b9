"""Small results as a pruning run leaves them, made without one."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from tests.models.zoo import ZOO
from torch import Tensor

from lowdim.models.disk import manifest, packed
from lowdim.models.disk.checkpoint import Checkpoint
from lowdim.models.disk.checks import mask_hash
from lowdim.models.disk.manifest import HashesPart, LayerPart, Manifest, ModelPart, SparsityPart
from lowdim.models.disk.writer import Writer, shard_name
from lowdim.models.load import quiet


def saved(path: Path, kind: str, dtype: torch.dtype = torch.bfloat16) -> Path:
    """Save a tiny model as Transformers does."""
    with quiet():
        ZOO[kind]().to(dtype).save_pretrained(path)
    return path


def holed(weight: Tensor, sparsity: float, seed: int) -> Tensor:
    """Return a copy with an exact number of zeros."""
    flat = weight.reshape(-1).clone()
    flat[flat == 0] = 0.01
    order = torch.randperm(len(flat), generator=torch.Generator().manual_seed(seed))
    flat[order[: round(sparsity * len(flat))]] = 0
    return flat.reshape(weight.shape)


def pruned(path: Path, kind: str = "llama", sparsity: float = 0.7, shards: int = 2) -> Path:
    """Write a sparse model with a truthful ``lowdim.json``."""
    checkpoint = Checkpoint(saved(path.with_name(f"{path.name}-dense"), kind))
    names = checkpoint.names()
    is_layer = {n: bool(re.search(r"\.\d+\.", n)) and len(checkpoint.info(n).shape) == 2 for n in names}
    tensors = {
        n: holed(checkpoint.read(n), sparsity, i) if is_layer[n] else checkpoint.read(n) for i, n in enumerate(names)
    }
    layers, masks = {}, {}
    for name in (n for n in names if is_layer[n]):
        kept = packed.kept(tensors[name])
        key = name.removesuffix(".weight")
        nonzeros = int(kept.sum())
        layers[key] = LayerPart(numel=kept.numel(), nonzeros=nonzeros, sparsity=1 - nonzeros / kept.numel())
        masks[key] = mask_hash(kept)
    total = sum(part.numel for part in layers.values())
    zeros = total - sum(part.nonzeros for part in layers.values())
    with Writer(path) as writer:
        for i in range(shards):
            part = {n: tensors[n] for n in names[i::shards]}
            writer.write_shard(shard_name(i + 1, shards), part, checkpoint.metadata)
        for name in checkpoint.companions():
            writer.directory.copy(checkpoint.path / name)
        record = Manifest(
            lowdim="0.1.0",
            storage="dense",
            model=ModelPart(source="tiny", architecture=kind, dtype="bfloat16", files=checkpoint.fingerprint()),
            versions=manifest.versions(),
            layers=layers,
            sparsity=SparsityPart(target=sparsity, prunable=zeros / total, model=0.5),
            hashes=HashesPart(masks=masks, files=writer.hashes()),
        )
        writer.directory.write_text(manifest.FILE, manifest.to_text(record))
        return writer.finish()
