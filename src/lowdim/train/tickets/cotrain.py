"""The walk of Sparse Cocktail: stages of co-training, masks between them, one set of weights in the end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.optim import Optimizer

from lowdim.core.errors import LowdimError
from lowdim.core.masks import Masks
from lowdim.core.settings import Range, check
from lowdim.merge.combine import mix
from lowdim.merge.trial import Validate, refreshed, value
from lowdim.models.norms import norms
from lowdim.models.subnets import DENSE, Subnet, Subnets, masked
from lowdim.models.ticket import Ticket, borrowed
from lowdim.train.loop import Loop
from lowdim.train.tickets.pivot import Answer, Pivot
from lowdim.train.tickets.unified import Unified, Unifier, chosen

if TYPE_CHECKING:
    from lowdim.train.tickets.cocktail import SparseCocktail


class Run:
    """One call of `lowdim.train.tickets.cocktail.SparseCocktail.train`, whose arguments these are."""

    def __init__(
        self,
        settings: SparseCocktail,
        model: nn.Module,
        batches: Callable[[int], Iterable[Any]],
        optimizer: Callable[[nn.Module], Optimizer],
        answer: Answer,
        validate: Validate,
        refresh: Iterable[Any] | None,
        rate: Callable[[float], float],
        told: Callable[[int, int, float], None] | None,
    ) -> None:
        self.settings, self.model, self.batches, self.optimizer = settings, model, batches, optimizer
        self.answer, self.validate, self.rate = answer, validate, rate
        self.refresh = None if refresh is None else list(refresh)
        self.told = told or (lambda stage, epoch, loss: None)

    def train(self, epochs: int, rewind: int, include: Sequence[str] | None, exclude: Sequence[str] | None) -> Subnets:
        """Train all stages, then find the weights that serve them together."""
        settings = self.settings
        check("epochs", epochs, Range(least=1, whole=True))
        check("rewind", rewind, Range(least=0, most=epochs, whole=True))
        if norms(self.model) and not self.refresh:
            raise LowdimError(
                "the model has BatchNorm, and each of its sparse networks needs statistics of its own: give refresh, "
                "batches of training data"
            )
        weights = chosen(self.model, settings.patterns(), include, exclude)
        unifier = Unifier(weights, settings.element, settings.channel, settings.refill)
        masks, drawn, start = unifier.start(), settings.drawn_at(), _copied(self.model)
        stages, trained = dict[int, Unified](), dict[int, Ticket]()
        for stage in range(settings.stages + 1):
            for epoch in self._stage(stage, masks, epochs):
                if stage == 0 and epoch == rewind:
                    start = _copied(self.model)
            if stage:
                stages[stage], trained[stage] = masks, Ticket.of(self.model, {})
            if stage < settings.stages:
                masks = unifier.draw(masks, drawn.get(stage + 1))
                self.model.load_state_dict(start)
        return self._served(stages, trained)

    def _stage(self, stage: int, masks: Unified, epochs: int) -> Iterable[int]:
        """Train a stage; yield after every epoch how many are over."""
        pivot = Pivot(masks.named(), self.settings.distill, self.answer)
        done = 0
        loop = Loop(
            self.model,
            self.optimizer(self.model),
            loss=pivot,
            schedule=lambda step: self.rate(done / epochs),
        )
        self.model.train()
        for epoch in range(epochs):
            before = loop.step
            loss = loop.run(self.batches(stage * epochs + epoch))
            if loop.step == before:
                raise LowdimError(f"batches({stage * epochs + epoch}) gave no batch. Return a new iterable every time")
            done = epoch + 1
            self.told(stage, epoch, loss)
            yield done

    def _served(self, stages: dict[int, Unified], trained: dict[int, Ticket]) -> Subnets:
        """Return the networks under the weights that they are best under together."""
        names = self.settings.names(stages)
        packed = {name: Masks.from_dict(stages[stage].named()[role]) for name, (role, stage, _) in names.items()}
        packed = {DENSE: Masks(), **packed}
        with borrowed(self.model):
            theta = trained[1]
            for stage in range(2, len(stages) + 1):
                so_far = [name for name, (_, first, _) in names.items() if first <= stage]
                tried = [mix([theta, trained[stage]], [p, 1.0 - p]) for p in self.settings.coefficients]
                scores = [sum(value(self._tried(state, packed[name])) for name in [DENSE, *so_far]) for state in tried]
                theta = Ticket(tried[_best(scores)], Masks())
            found = {name: self._tried(theta.state, masks) for name, masks in packed.items()}
        state = {**theta.state, **self._buffers(found[DENSE])}
        Ticket(state, Masks()).apply_(self.model)
        patterns = {DENSE: DENSE, **{name: pattern for name, (_, _, pattern) in names.items()}}
        nets = {
            name: Subnet(patterns[name], packed[name], self._buffers(ticket), ticket.score)
            for name, ticket in found.items()
        }
        return Subnets(state, nets)

    def _tried(self, state: Mapping[str, Tensor], masks: Masks) -> Ticket:
        """Return a network with norm statistics of its own and its score."""
        return refreshed(self.model, masked(state, masks), self.validate, self.refresh, self._asked)

    def _asked(self, model: nn.Module, batch: Any) -> Any:
        return self.answer(model, batch)[0]

    def _buffers(self, ticket: Ticket) -> dict[str, Tensor]:
        """Return the statistics of the norms among a network's tensors."""
        found = set(norms(self.model))
        owned = [(name, module) for name, module in self.model.named_modules() if module in found]
        names = [f"{owner}.{name}".lstrip(".") for owner, module in owned for name, _ in module.named_buffers()]
        return {name: ticket.state[name] for name in names}


def _best(scores: Sequence[float]) -> int:
    """Return the place of the largest score, the first of equal ones."""
    return max(range(len(scores)), key=lambda place: (scores[place], -place))


def _copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
