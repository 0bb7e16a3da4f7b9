"""The masks of a finished output: which weights of a sparse checkpoint are kept."""

from __future__ import annotations

from pathlib import Path

from lowdim.core.errors import CheckpointError
from lowdim.core.masks import Masks
from lowdim.models.disk import manifest, packed
from lowdim.models.disk.checkpoint import Checkpoint
from lowdim.models.disk.checks import mask_hash
from lowdim.models.disk.convert import tensor_name


def pruned_in(checkpoint: Checkpoint) -> frozenset[str]:
    """Return the names of the weights that ``lowdim.json`` lists as pruned; none of a model without one.

    Raises:
        CheckpointError: the model has not a layer that is listed.
    """
    if not manifest.exists(checkpoint.path):
        return frozenset()
    return frozenset(tensor_name(checkpoint, layer) for layer in manifest.read(checkpoint.path).layers)


def masks_in(path: Path) -> Masks:
    """Read the masks of every pruned layer out of a directory that ``lowdim prune`` wrote, by the weights' names.

    Raises:
        CheckpointError: it is no such directory, or its weights are not those that its record describes.
    """
    if not (path / manifest.FILE).is_file():
        raise CheckpointError(
            f"{path} is a directory without {manifest.FILE}, so it is no output of lowdim prune. Give one, or the "
            "file that Masks.save wrote"
        )
    record, checkpoint = manifest.read(path), Checkpoint(path)
    masks = Masks()
    for layer in record.layers:
        name = tensor_name(checkpoint, layer)
        mask = packed.kept(checkpoint.read(name))
        if record.hashes.masks.get(layer, mask_hash(mask)) != mask_hash(mask):
            raise CheckpointError(f"{layer} in {path} has another mask than recorded: run lowdim verify on it")
        masks.add(name, mask)
    return masks
