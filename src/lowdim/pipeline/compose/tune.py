"""A few steps of training on facts, near the weights that there are: what editing and unlearning share."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lowdim.core.errors import LowdimError, NumericalError
from lowdim.core.progress import Progress
from lowdim.core.recipe.which import choose
from lowdim.data.batch import Batch
from lowdim.models.disk.checkpoint import Checkpoint
from lowdim.models.disk.masks import pruned_in
from lowdim.models.disk.source import Source
from lowdim.models.load import load
from lowdim.models.quantize import linear_weights
from lowdim.models.structure.zeros import mask_of
from lowdim.models.walk.inputs import model_inputs
from lowdim.models.walk.opened import open_model
from lowdim.models.walk.skeleton import Skeleton, empty_model
from lowdim.pipeline.ahead import seconds_per_token
from lowdim.train.loop import Loop

Ids = tuple[list[int], list[int]]
"""A context and what is to follow it, as token ids."""
_NONE = -100
_WORDS = 16  # tokens of a fact, for plans
_ROWS = 8  # facts in a forward and backward pass; a step takes all of them


@dataclass(frozen=True)
class Chunk:
    """Some of the facts, padded: the batch, by position the token that should follow, and which sign each fact has."""

    batch: Batch
    labels: Tensor
    signs: Tensor

    def __len__(self) -> int:
        """Return the number of facts."""
        return len(self.labels)


def chunks(facts: Sequence[tuple[Ids, float]], pad: int) -> list[Chunk]:
    """Return facts in padded batches; the prompt's own tokens are not judged.

    Args:
        facts: each with the weight of its loss: 1 to learn it, below 0 to unlearn it.
        pad: id of the padding.

    Example:
        >>> [one] = chunks([(([5, 6], [7]), 1.0), (([5], [8, 9]), -1.0)], pad=0)
        >>> one.batch.input_ids.tolist(), one.labels.tolist(), one.signs.tolist()
        ([[5, 6], [5, 8]], [[-100, 7], [8, 9]], [1.0, -1.0])
    """
    found = []
    for start in range(0, len(facts), _ROWS):
        some = facts[start : start + _ROWS]
        width = max(len(before) + len(after) for (before, after), _ in some) - 1
        ids, mask = torch.full((len(some), width), pad), torch.zeros(len(some), width, dtype=torch.int64)
        labels = torch.full((len(some), width), _NONE)
        for row, ((before, after), _) in enumerate(some):
            whole = torch.tensor([*before, *after])
            size = len(whole) - 1
            ids[row, :size], mask[row, :size] = whole[:-1], 1
            labels[row, len(before) - 1 : size] = torch.tensor(after)
        signs = torch.tensor([sign for _, sign in some])
        found.append(Chunk(Batch(ids, None if bool(mask.all()) else mask), labels, signs))
    return found


def losses(model: nn.Module, chunk: Chunk) -> Tensor:
    """Return the mean negative log-likelihood of a token of each fact, fp32 ``[facts]``."""
    device = next(model.parameters()).device
    logits = model(**model_inputs(model, chunk.batch, device)).logits
    labels = chunk.labels.to(device)
    judged = labels != _NONE
    each = nn.functional.cross_entropy(logits[judged].float(), labels[judged], reduction="none")
    rows = judged.nonzero()[:, 0]
    total = torch.zeros(len(labels), device=device).index_add(0, rows, each)
    return total / judged.sum(1)


class Tuner:
    """A model in memory whose chosen matrices are trained, each weight within a distance of where it began.

    After every optimizer step the weights are projected onto the box of that distance, and pruned weights onto zero:
    projected gradient descent, min L(w) with |w - w0|_inf <= d. Paper: "Modifying Memories in Transformer Models",
    arXiv 2012.00363.

    Args:
        source: where the model is.
        include: globs on the names of the weights that are trained; none means every linear layer of the blocks.
        distance: d; ``None`` for no bound.
        masked: whether zeros of pruned layers stay zero while it trains.
        device: where it trains.

    Raises:
        RecipeError: ``include`` matches nothing.
        LowdimError: no linear layer of the model is on disk as it is in memory.
    """

    def __init__(
        self, source: Source, include: Sequence[str], distance: float | None, masked: bool, device: str
    ) -> None:
        self.checkpoint = Checkpoint(source.path)
        self.model: PreTrainedModel = load(source.path, None, device, source.trusted)
        skeleton = _skeleton(source, self.checkpoint)
        self.names = {skeleton.parameter_of(name): name for name in trainable(source, include)}
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in self.names)
        self.parameters = {name: self.model.get_parameter(name) for name in self.names}
        self.distance = distance
        self.start = {p: p.detach().float().clone() for p in self.parameters.values()}
        self.masks = self._masks() if masked else {}

    def _masks(self) -> dict[nn.Parameter, Tensor]:
        """Return the masks of pruned weights, the same as `lowdim.pipeline.compose.invariants.read` holds."""
        pruned = pruned_in(self.checkpoint)
        found = {
            parameter: mask_of(parameter.detach(), self.names[name] in pruned)
            for name, parameter in self.parameters.items()
        }
        return {parameter: mask for parameter, mask in found.items() if mask is not None}

    def train(
        self,
        facts: Sequence[Chunk],
        loss: Callable[[Tensor, Chunk], Tensor],
        done: Callable[[float, Tensor], bool],
        *,
        lr: float,
        steps: int,
        title: str,
        progress: Progress,
    ) -> list[float]:
        """Take steps on all facts until they are done, at most so many; return the loss before each.

        Args:
            facts: what is trained on; every step sees all of it.
            loss: from the loss of each fact of a chunk to the mean that is minimised.
            done: told the loss before a step, and that of each fact; where it is true the step is not taken.
            lr: of Adam.
            steps: at most.
            title: of the stage.
            progress: told of every step.

        Raises:
            NumericalError: the loss is not finite.
        """
        optimizer = torch.optim.Adam(self.parameters.values(), lr=lr)

        def of(model: nn.Module, chunk: Chunk) -> Tensor:
            return loss(losses(model, chunk), chunk)

        loop = Loop(self.model, optimizer, loss=of, accumulate=len(facts), master=True, size=len)
        seen: list[float] = []
        with progress.stage(title, steps, "steps") as stage:
            while loop.step < steps:
                now, each = self._judged(loss, facts)
                if not math.isfinite(now):
                    raise NumericalError(f"{title}: the loss of step {loop.step} is not finite. Lower lr.")
                seen.append(now)
                if done(now, each):
                    break
                loop.run(facts)
                loop.replace_copies({p: self._projected(p, loop.copy_of(p)) for p in self.start})
                stage.advance()
        self.found = {self.names[name]: loop.copy_of(p) for name, p in self.parameters.items()}
        return seen

    @torch.no_grad()
    def _judged(self, loss: Callable[[Tensor, Chunk], Tensor], facts: Sequence[Chunk]) -> tuple[float, Tensor]:
        """Return the loss over all facts, and that of each."""
        each = [losses(self.model, chunk) for chunk in facts]
        total = sum(float(loss(own, chunk)) * len(chunk) for own, chunk in zip(each, facts, strict=True))
        return total / sum(map(len, facts)), torch.cat(each)

    def _projected(self, parameter: nn.Parameter, weight: Tensor) -> Tensor:
        """Return the nearest weights that are allowed: within the distance of where they began, zeros kept."""
        start = self.start[parameter]
        near = weight if self.distance is None else start + (weight - start).clamp(-self.distance, self.distance)
        return near if parameter not in self.masks else near * self.masks[parameter]

    def changed(self) -> Mapping[str, Tensor]:
        """Return by name on disk the weights that are other ones than before, in the type that they are stored in."""
        found = {}
        for name, weight in self.found.items():
            stored = self.checkpoint.info(name).dtype
            before = self.checkpoint.read(name)
            after = weight.detach().to("cpu", stored)
            if not torch.equal(after, before):
                found[name] = after
        return found


def seconds_of_step(source: Source, facts: int) -> float:
    """Return about how long a step on so many facts takes: three forwards, of one that is timed now.

    Args:
        source: the model.
        facts: taken for `_WORDS` tokens each.
    """
    opened = open_model(str(source.path), trust_remote_code=source.trusted)
    return 3 * facts * _WORDS * seconds_per_token(opened, torch.ones(1, 64, dtype=torch.int64))


def trainable(source: Source, include: Sequence[str]) -> list[str]:
    """Return the names on disk of the linear layers' weights that may be trained; nothing is loaded.

    Raises:
        RecipeError: ``include`` matches nothing.
        LowdimError: there is none that is on disk as it is in memory.
    """
    checkpoint = Checkpoint(source.path)
    skeleton = _skeleton(source, checkpoint)
    names = [name for name in linear_weights(checkpoint, source.trusted) if skeleton.is_whole(name)]
    if not names:
        raise LowdimError(
            f"{source.spec} has no linear layer in its blocks that is one matrix on disk and in memory, so that none "
            "can be edited. Edit another model."
        )
    return choose(names, list(include) or None, None)


def _skeleton(source: Source, checkpoint: Checkpoint) -> Skeleton:
    return Skeleton(empty_model(source.path, checkpoint.dtype, source.trusted), checkpoint, None)
