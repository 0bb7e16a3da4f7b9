"""Which weights of a network become sparse."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from lowdim.core.errors import RecipeError
from lowdim.core.recipe.which import choose, matches
from lowdim.models.structure import routers
from lowdim.models.structure.heads import HEAD, find_head, listed
from lowdim.models.structure.kinds import RAW, embedded, why_unknown

_PLAIN = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)
_WRAPPERS = (DistributedDataParallel, nn.DataParallel, AveragedModel)
_WRAPPED = (
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "_forward_module",
    "_original_module",
)  # of torch.compile, FSDP, activation checkpoints, Lightning Fabric


@dataclass(frozen=True)
class Weight:
    """One weight that may become sparse, and where it lives.

    Attributes:
        name: of the parameter.
        module: that holds it.
        attribute: of the module.
        parameter: the parameter.
        dense: why it stays dense; empty if it becomes sparse.
        stacked: whether the parameter holds a matrix per expert, each of which becomes sparse by itself.
    """

    name: str
    module: nn.Module
    attribute: str
    parameter: nn.Parameter
    dense: str = ""
    stacked: bool = False

    @property
    def inputs_first(self) -> bool:
        """Whether it is [in, out, ...]: of a transposed convolution, transformers' Conv1D, or some experts."""
        if not self.stacked:
            return inputs_first(self.module)
        parts = [name for name, p in self.module._parameters.items() if p is not None and p.dim() == 3]
        return routers.inputs_first(self.module, parts)


def select(
    model: nn.Module,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    *,
    classifier: bool = False,
) -> dict[str, nn.Parameter]:
    """Return the weights that become sparse, by parameter name, in the order of the model.

    Candidates are the weights, of two or more dimensions, of linear, convolutional and recurrent layers, of
    ``nn.MultiheadAttention`` and of experts (parameters of three dimensions that hold a matrix per expert); never
    biases, norms and embeddings, nor a weight tied to an embedding. By default the head
    (`lowdim.models.structure.heads.find_head`), routers of experts and frozen parameters stay dense too.

    Args:
        model: any module. The names that DistributedDataParallel and torch.compile prefix are left out.
        include: globs on parameter or module names ("layers.*.fc1"), or regular expressions searched for in them
            ("re:fc[12]"); if given, the candidates that match and only those, heads too.
        exclude: the same of what stays dense.
        classifier: whether the classifier of `ends` becomes sparse whatever ``include`` says.

    Raises:
        RecipeError: an expression matches nothing, nothing is left, a weight asked for cannot be sparse, or ``exclude``
            names the classifier that is asked for.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> list(select(net)), list(select(net, include=["*"]))
        (['0.weight'], ['0.weight', '2.weight'])
    """
    chosen = weights(model, include, exclude, classifier=classifier)
    return {w.name: w.parameter for w in chosen if not w.dense}


def weights(
    model: nn.Module,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    *,
    classifier: bool = False,
) -> list[Weight]:
    """Return every parameter of two or more dimensions, with the reason where it stays dense; see `select`."""
    every = list(inventory(model))
    found = [w for w in every if not w.dense]
    _check_included(every, include)
    choose([w.name for w in found], include, exclude)
    reserved = {} if include is not None else _reserved(model, found)
    if classifier and found:
        last = _asked_classifier(model, found, exclude or ())
        reserved.pop(id(last.parameter), None)
        include = None if include is None else [*include, last.name]
    judged = [w if w.dense else _judge(w, include, exclude or (), reserved) for w in every]
    if all(w.dense for w in judged):
        why = "; ".join(f"{w.name}: {w.dense}" for w in judged[:5]) or "there is none in the model"
        raise RecipeError(f"no weight is left to be sparse ({why}). Name some with include=[...]")
    return judged


def inner(model: nn.Module) -> list[Weight]:
    """Return the weights, of two or more dimensions, between a network's embeddings and its head, frozen ones too.

    The head is the one of `select`, unless that is a guess; what adapters add to embeddings and head belongs to them.

    Example:
        >>> net = nn.ModuleDict({"bag": nn.EmbeddingBag(9, 8), "body": nn.Linear(8, 8), "classifier": nn.Linear(8, 2)})
        >>> [w.name for w in inner(net)]
        ['body.weight']
    """
    every = list(inventory(model))
    reserved = _reserved(model, [w for w in every if not w.dense])
    bare = next((module for module in model.modules() if hasattr(module, "get_output_embeddings")), model)
    said = [getattr(bare, f"get_{side}_embeddings", lambda: None)() for side in ("input", "output")]
    outer = {id(p) for module in said if module is not None for p in module.parameters()}
    outer |= embedded(model).keys() | {key for key, why in reserved.items() if why == HEAD}
    return [w for w in every if id(w.parameter) not in outer]


def ends(model: nn.Module) -> tuple[str, str]:
    """Return the names of the network's first weight and of its classifier, sparse or not.

    The classifier is the head that stays dense by default (see `select`) or, in a network without one, the last weight;
    none where that is in an ``nn.ModuleList`` and linear layers outside of it might be meant.

    Example:
        >>> ends(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(4, 2)))
        ('0.weight', '3.weight')
    """
    found = [w for w in inventory(model) if not w.dense]
    last = _classifier(model, found)
    return found[0].name if found else "", last.name if last else ""


def plain_name(name: str, model: nn.Module) -> str:
    """Return the name of something in a model without what wrappers put into it; a child called ``module`` stays.

    Example:
        >>> net = nn.DataParallel(nn.ModuleDict({"module": nn.Linear(2, 2)}))
        >>> [plain_name(name, net) for name, _ in net.named_parameters()]
        ['module.weight', 'module.bias']
    """
    kept: list[str] = []
    holder: nn.Module | None = model
    for part in name.split("."):
        if part not in _WRAPPED and not (part == "module" and isinstance(holder, _WRAPPERS)):
            kept.append(part)
        holder = getattr(holder, "_modules", {}).get(part)
    return ".".join(kept)


def named_weights(model: nn.Module, names: Collection[str] = ()) -> dict[str, nn.Parameter]:
    """Return a model's parameters by every plain name that they have.

    Args:
        model: any module.
        names: that are looked for. Where some are missing, ``model`` may be a wrapper of a class that is not known
            here, such as a moving average of the user's own, and its ``module`` is asked.
    """
    found = {plain_name(name, model): p for name, p in model.named_parameters(remove_duplicate=False)}
    inside = model._modules.get("module")
    if inside is None or all(name in found for name in names):
        return found
    return max(found, named_weights(inside, names), key=lambda named: sum(name in named for name in names))


def inventory(model: nn.Module) -> Iterator[Weight]:
    """Yield the parameters of two or more dimensions; those that cannot be sparse with the reason."""
    embeddings, stacked, steering = embedded(model), routers.stacks(model), routers.routers(model, told=True)
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        candidates = _attributes(module)
        for attribute, parameter in module._parameters.items():
            if parameter is None or parameter.ndim < 2 or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            name = plain_name(f"{prefix}.{attribute}" if prefix else attribute, model)
            experts = attribute in stacked.get(prefix, ())
            if id(parameter) in embeddings:
                yield Weight(name, module, attribute, parameter, embeddings[id(parameter)])
            elif prefix in steering and attribute not in candidates:
                yield Weight(name, module, attribute, parameter, routers.ROUTER)
            elif experts or attribute in candidates:
                yield Weight(name, module, attribute, parameter, stacked=experts)
            else:
                yield Weight(name, module, attribute, parameter, why_unknown(module, attribute))


def _check_included(every: Sequence[Weight], include: Sequence[str] | None) -> None:
    """Refuse, with the reason, what is named and cannot be sparse."""
    for text in include if isinstance(include, Sequence) and not isinstance(include, str) else ():
        named = [w for w in every if matches(text, w.name)]
        if named and all(w.dense for w in named):
            raise RecipeError(f"include {text!r} names {named[0].name}, which cannot be sparse: {named[0].dense}")


def _reserved(model: nn.Module, found: Sequence[Weight]) -> dict[int, str]:
    """Return the parameters that stay dense unless they are named, by id, with the reason."""
    steering = routers.routers(model, told=True)
    modules = {id(model.get_submodule(name)) for name in steering}
    reserved = {id(w.parameter): routers.ROUTER for w in found if id(w.module) in modules}
    head = _head(model, [w for w in found if id(w.parameter) not in reserved])
    return reserved if head is None else reserved | {id(head[0]): head[1]}


def _attributes(module: nn.Module) -> list[str]:
    own = [name for name, p in module._parameters.items() if p is not None]
    if isinstance(module, _RECURRENT):
        return [name for name in own if name.startswith("weight") and not name.endswith(RAW)]
    if isinstance(module, nn.MultiheadAttention):
        return [name for name in own if name.endswith("proj_weight")]
    if isinstance(module, _PLAIN) or type(module).__name__ == "Conv1D":  # the transposed linear layer of transformers
        return ["weight"]
    return []


def inputs_first(module: nn.Module) -> bool:
    """Tell whether a layer's weight is [in, out, ...]: a transposed convolution, or the Conv1D of transformers."""
    transposed = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    return isinstance(module, transposed) or type(module).__name__ == "Conv1D"


def _head(model: nn.Module, found: Sequence[Weight]) -> tuple[nn.Parameter, str] | None:
    return find_head(model, [(w.name, w.module, w.parameter) for w in found])


def _asked_classifier(model: nn.Module, found: Sequence[Weight], exclude: Sequence[str]) -> Weight:
    last = _classifier(model, found)
    if last is None:
        raise RecipeError(
            "the allocation gives the network's classifier a density of its own, and which layer that is is not "
            f"clear: {found[-1].name} is the last, inside of an nn.ModuleList. Give the sparsity of every layer by "
            "name, or use another allocation such as erk"
        )
    if any(matches(text, last.name) for text in exclude):
        raise RecipeError(
            f"the allocation gives the network's classifier, {last.name}, a density of its own, and exclude leaves "
            "it out of the budget. Take it out of exclude, or use another allocation such as erk"
        )
    return last


def _classifier(model: nn.Module, found: Sequence[Weight]) -> Weight | None:
    head = _head(model, found)
    if head is None and found:
        inside = listed(model)
        plain = [w for w in found[:-1] if isinstance(w.module, nn.Linear) and id(w.module) not in inside]
        return None if plain and id(found[-1].module) in inside else found[-1]
    return next((w for w in found if head and w.parameter is head[0]), None)


def _judge(w: Weight, include: Sequence[str] | None, exclude: Sequence[str], reserved: dict[int, str]) -> Weight:
    dense = ""
    if any(matches(text, w.name) for text in exclude):
        dense = "excluded"
    elif include is not None and not any(matches(text, w.name) for text in include):
        dense = "not included"
    elif include is not None and not w.parameter.requires_grad:
        raise RecipeError(
            f"include names {w.name}, which is frozen (requires_grad is False): a mask that moves needs its "
            "gradient. Unfreeze it, or leave it out"
        )
    elif id(w.parameter) in reserved:
        dense = reserved[id(w.parameter)]
    elif not w.parameter.requires_grad:
        dense = "frozen"
    elif w.parameter.numel() == 0:
        dense = "empty"
    return replace(w, dense=dense)


def shares_memory(tensors: dict[str, Tensor]) -> list[tuple[str, str]]:
    """Return the pairs of names whose tensors are views of the same memory."""
    first: dict[tuple[int, str], str] = {}
    pairs = []
    for name, tensor in tensors.items():
        if tensor.numel() == 0 or not hasattr(tensor, "untyped_storage"):
            continue
        key = (int(tensor.untyped_storage().data_ptr() + tensor.storage_offset()), str(tensor.device))
        if key in first and key[0]:
            pairs.append((first[key], name))
        first.setdefault(key, name)
    return pairs
