"""Distillation: a pruned network is trained to say what its dense teacher says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lowdim.core.errors import LowdimError, RecipeError
from lowdim.core.settings import Moot, Settings, within
from lowdim.data.batch import Batch, num_tokens
from lowdim.models import ranks
from lowdim.models.walk.inputs import model_inputs
from lowdim.nn.blocks import evaluating
from lowdim.train.objectives.divergence import divergence, two_vocabularies
from lowdim.train.objectives.predictor import Predictor, warn_of_plain
from lowdim.train.objectives.rows import NO_LABEL, Scratch


@dataclass(frozen=True)
class Distillation(Settings):
    """What a student's loss is made of, each part a sum over the real tokens divided by their number.

        kl T^2 KL(teacher || student)                        of the next token's distributions, softmax(logits / T)
        + ce CE                                              of the next tokens; the last token of a text adds nothing
        + hidden mean_l |h_l - h_l^teacher|^2 / |h_l^teacher|^2    of what the blocks l give

    Papers: "Distilling the Knowledge in a Neural Network", 2015, arXiv 1503.02531; ``hidden`` is SquareHead of "Sparse
    Fine-tuning for Inference Acceleration of Large Language Models", 2023, arXiv 2310.06927.

    Attributes:
        kl: weight of the divergence.
        ce: weight of the cross entropy.
        hidden: weight of the hidden states; the networks have blocks of one number and one width then.
        temperature: T of the divergence.

    Raises:
        RecipeError: a value is out of its range, or all weights are 0.

    Example:
        >>> Distillation(temperature=2.0).to_dict()
        {'kl': 1.0, 'ce': 0.0, 'hidden': 0.0, 'temperature': 2.0}
    """

    moot: ClassVar[Moot] = {"temperature": ("kl", (0,))}
    kl: float = within(1.0, least=0)
    ce: float = within(0.0, least=0)
    hidden: float = within(0.0, least=0)
    temperature: float = within(1.0, above=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.kl or self.ce or self.hidden):
            raise RecipeError("kl, ce and hidden are all 0, which leaves no loss; give one of them a weight above 0")


class Distiller:
    """The loss of a student by its teacher, as a `lowdim.train.loop.Loop` takes it, with ``size`` as its size.

    The logits of a whole batch are never held where a network's logits are one linear layer of its last hidden states
    (`chunked` says of which that holds); a network that caps or scales them is asked for its own logits.

    Args:
        settings: the parts of the loss.
        student: the network to be trained; a DistributedDataParallel of it may be called as well.
        teacher: of the same vocabulary and on the same device; left as it is, and run in evaluation mode.

    Raises:
        LowdimError: the vocabularies differ, or, with ``hidden``, the number or the width of the blocks.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        ...     num_attention_heads=2)
        >>> network = LlamaForCausalLM(config).eval()
        >>> distiller = Distiller(Distillation(), network, network)
        >>> batch = Batch(torch.tensor([[1, 2, 3]]))
        >>> distiller.size(batch), abs(distiller(network, batch).item()) < 1e-5
        (3, True)
    """

    size = staticmethod(num_tokens)

    def __init__(self, settings: Distillation, student: nn.Module, teacher: nn.Module) -> None:
        self.settings, self.student, self.teacher = settings, student, teacher
        _check_pair(settings, student, teacher)
        self._asked = {network: Predictor(network) for network in (student, teacher)}
        self.chunked = {
            role: self._asked[network].chunked for role, network in (("student", student), ("teacher", teacher))
        }
        self._scratch = Scratch()
        warn_of_plain(self._asked.values())

    def __call__(self, student: nn.Module, batch: Batch, taught: Tensor | None = None) -> Tensor:
        """Return the mean loss of a batch's real tokens.

        Args:
            student: the one of the construction, or a DistributedDataParallel of it.
            batch: token ids, on any device.
            taught: what `teach` returned for this batch, instead of running the teacher.

        Raises:
            LowdimError: another student; ``taught`` has another number of tokens, or is given with ``hidden``.
        """
        inner = ranks.unwrapped(student)
        if inner is not self.student:
            raise LowdimError("the student is not the network that this distiller was made for; make one for each")
        settings = self.settings
        if taught is not None and settings.hidden:
            raise LowdimError("with hidden above 0 the teacher runs for its blocks' states; leave taught out")
        states, layers = self._run(student, self.student, batch)
        loss = states.new_zeros((), dtype=torch.float32)
        if taught is None and (settings.kl or settings.hidden):
            with evaluating(self.teacher), torch.no_grad():
                taught, aims = self._run(self.teacher, self.teacher, batch)
            if settings.hidden:
                loss = loss + settings.hidden * squared_error(layers, aims)
        if settings.kl or settings.ce:
            loss = loss + self._divergence(states, taught, batch)
        return loss

    def teach(self, batch: Batch) -> Tensor:
        """Return what a batch needs of the teacher, to be kept for several passes over the same text.

        Its last hidden states, ``[real tokens, D]``; a teacher that is not `chunked`: its logits, ``[real tokens, V]``.
        """
        with evaluating(self.teacher), torch.no_grad():
            return self._run(self.teacher, self.teacher, batch)[0]

    def _divergence(self, states: Tensor, taught: Tensor | None, batch: Batch) -> Tensor:
        settings = self.settings
        student = self._asked[self.student].side(states)
        teacher = None if taught is None else self._asked[self.teacher].side(taught.to(states.device))
        labels = next_tokens(batch).to(states.device) if settings.ce else None
        return divergence(
            student,
            teacher,
            labels,
            kl=settings.kl,
            ce=settings.ce,
            temperature=settings.temperature,
            scratch=self._scratch,
        )

    def _run(self, called: nn.Module, network: nn.Module, batch: Batch) -> tuple[Tensor, list[Tensor]]:
        """Return what real tokens have before the head (after it, if not chunked), and what the blocks gave them."""
        device = next(network.parameters()).device
        more = {"output_hidden_states": True} if self.settings.hidden else {}
        out = self._asked[network].run(called, model_inputs(network, batch, device), **more)
        states = out.hidden_states[1:] if self.settings.hidden else ()
        return real(out.logits, batch), [real(state, batch) for state in states]


def real(states: Tensor, batch: Batch) -> Tensor:
    """Return the states of a batch's real tokens, ``[real tokens, ...]``, of those of all, ``[B, T, ...]``."""
    mask = batch.attention_mask
    return states.flatten(0, 1) if mask is None else states[mask.bool().to(states.device)]


def next_tokens(batch: Batch) -> Tensor:
    """Return which token follows each real token of a batch, int64 ``[real tokens]``; -100 for the last of a text.

    Example:
        >>> next_tokens(Batch(torch.tensor([[0, 5, 6], [7, 8, 0]]), torch.tensor([[0, 1, 1], [1, 1, 0]])))
        tensor([   6, -100,    8, -100])
    """
    mask = torch.ones_like(batch.input_ids) if batch.attention_mask is None else batch.attention_mask
    known = batch.input_ids.where(mask.bool(), NO_LABEL)
    return real(torch.cat([known[:, 1:], known.new_full((len(known), 1), NO_LABEL)], 1), batch)


def squared_error(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Return |h - h^teacher|^2 / |h^teacher|^2, averaged over layers and tokens; each layer's states are ``[n, D]``.

    Example:
        >>> float(squared_error([torch.tensor([[1.0, 2.0]])], [torch.tensor([[3.0, 4.0]])]))
        0.3199...
    """
    return torch.stack([relative_error(*pair) for pair in zip(student, teacher, strict=True)]).mean()


def relative_error(states: Tensor, wanted: Tensor) -> Tensor:
    """Return the squared error of each token's state ``[D]`` in shares of what was wanted of it, the mean over ``n``.

    A few tokens (the first of a text, in many models) have states a thousand times larger than others; in plain sums of
    squares nothing but them would count.

    Example:
        >>> relative_error(torch.tensor([[3.0, 4.0], [0.0, 1.0]]), torch.tensor([[3.0, 0.0], [0.0, 1.0]]))
        tensor(0.8889)
    """
    wanted = wanted.float()
    return ((states.float() - wanted).square().sum(-1) / wanted.square().sum(-1).clamp_min(1e-12)).mean()


def _check_pair(settings: Distillation, student: nn.Module, teacher: nn.Module) -> None:
    words = [_vocabulary(network) for network in (student, teacher)]
    if words[0] != words[1] and (settings.kl or settings.hidden):
        raise LowdimError(two_vocabularies(*words))
    if settings.hidden:
        configs: list[Any] = [network.config for network in (student, teacher)]
        sizes = [(text.num_hidden_layers, text.hidden_size) for text in (c.get_text_config() for c in configs)]
        if sizes[0] != sizes[1]:
            told = " and ".join(f"{blocks} blocks of width {width}" for blocks, width in sizes)
            raise LowdimError(
                f"hidden compares states block by block, and student and teacher have {told}; use hidden=0"
            )


def _vocabulary(network: Any) -> int:
    head = network.get_output_embeddings()
    return int(network.config.get_text_config().vocab_size if head is None else head.weight.shape[0])
