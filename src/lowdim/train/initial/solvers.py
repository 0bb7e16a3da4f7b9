"""How many weights each kernel of a layer gets: the programme of NPB, greedily or exactly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lowdim.core.budget import apportion
from lowdim.core.errors import NumericalError

Counts = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Problem:
    """One layer: paths arriving at each input, outputs, most weights per kernel, weights, and the two prices."""

    paths: NDArray[np.float64]
    outs: int
    limit: int
    count: int
    alpha: float
    beta: float

    @property
    def node(self) -> float:
        """What an input or output with a weight is worth."""
        return self.alpha / max(1, len(self.paths) + self.outs)

    @property
    def kernel(self) -> float:
        """What a kernel with a weight is worth."""
        return self.beta / max(1, self.count)

    def path(self) -> NDArray[np.float64]:
        """Return what a weight at each input is worth: (1 - alpha) P_i / most, to nine digits.

        ``most`` is the sum of paths if the inputs of most paths were filled first. Channels that are alike then tie
        whatever the order of summation.
        """
        top = float(self.paths.max(initial=0.0))
        if top <= 0.0:
            return np.zeros(len(self.paths))
        shares = (self.paths / top).round(9)
        full, rest = divmod(self.count, max(1, self.outs * self.limit))
        ordered = np.sort(shares)[::-1]
        most = ordered[:full].sum() * self.outs * self.limit + (rest * ordered[full] if rest else 0.0)
        return np.asarray((1.0 - self.alpha) * shares / most) if most else np.zeros(len(shares))

    def value(self, counts: Counts) -> float:
        """Return the objective of a solution, [outs, ins]."""
        nodes = int((counts.sum(0) > 0).sum()) + int((counts.sum(1) > 0).sum())
        paths = float((counts * self.path()).sum())
        return self.node * nodes + paths + self.kernel * int((counts > 0).sum())


def solve(problem: Problem, solver: str, chunk: int, drawn: np.random.Generator) -> Counts:
    """Return the weights per kernel, int [outs, ins], that sum to the problem's count."""
    if problem.count == 0 or problem.outs * len(problem.paths) == 0:
        return np.zeros((problem.outs, len(problem.paths)), dtype=np.int64)
    if solver == "greedy":
        return greedy(problem, drawn)
    sizes = [min(chunk, problem.outs - at) for at in range(0, problem.outs, chunk)]
    room = len(problem.paths) * problem.limit
    counts = apportion([float(size) for size in sizes], problem.count, [size * room for size in sizes])
    parts = [
        Problem(problem.paths, size, problem.limit, count, problem.alpha, problem.beta)
        for size, count in zip(sizes, counts, strict=True)
    ]
    return np.concatenate([milp(part) for part in parts])


def greedy(problem: Problem, drawn: np.random.Generator) -> Counts:
    """Take the most valuable weight again and again; of equal ones one of the output that has the fewest.

    Outputs come first, each with an input that has no weight yet where that is worth more than the input of most paths.
    Then inputs in the order of value, in up to three steps each: its first weight, one weight in each empty kernel, and
    the rest of its kernels.
    """
    found = np.zeros((problem.outs, len(problem.paths)), dtype=np.int64)
    worth = problem.path()
    _cover_outputs(problem, worth, found, drawn)
    for inputs, step in _steps(problem, worth, found):
        left = problem.count - int(found.sum())
        if not left:
            break
        _fill(problem, found, inputs, step, left, drawn)
    return found


def _cover_outputs(problem: Problem, worth: NDArray[np.float64], found: Counts, drawn: np.random.Generator) -> None:
    outputs = drawn.permutation(problem.outs)[: problem.count] if problem.node > 0 else np.empty(0, np.int64)
    order = drawn.permutation(len(worth))
    order = order[np.argsort(-worth[order], kind="stable")]
    own = order[problem.node > worth.max() - worth[order]]
    best = order[worth[order] == worth.max()]
    pairs = min(len(outputs), len(own))
    inputs = np.concatenate([own[:pairs], np.resize(best, len(outputs) - pairs)])
    found[outputs, inputs] = 1


def _steps(problem: Problem, worth: NDArray[np.float64], found: Counts) -> list[tuple[NDArray[np.int64], str]]:
    """Return groups of inputs of equal value, and the step to take with each, the most valuable first."""
    bare = found.sum(0) == 0
    steps: list[tuple[float, NDArray[np.int64], str]] = []
    for value in np.unique(worth):
        alike = np.flatnonzero(worth == value)
        first = float(value) + problem.kernel
        if problem.node > 0 and bare[alike].any():
            steps.append((first + problem.node, alike[bare[alike]], "one"))
        if problem.kernel > 0:
            steps.append((first, alike, "empty"))
        steps.append((float(value), alike, "rest"))
    return [(inputs, step) for _, inputs, step in sorted(steps, key=lambda step: -step[0])]


def _fill(
    problem: Problem,
    found: Counts,
    inputs: NDArray[np.int64],
    step: str,
    left: int,
    drawn: np.random.Generator,
) -> None:
    """Add up to ``left`` weights at some inputs, evenly over the outputs."""
    if step == "one":
        inputs = drawn.permutation(inputs)[:left]
        outputs = drawn.permutation(problem.outs)
        outputs = outputs[np.argsort(found.sum(1)[outputs], kind="stable")]
        found[np.resize(outputs, len(inputs)), inputs] = 1
        return
    here = found[:, inputs]
    room = (here == 0).astype(np.int64) if step == "empty" else problem.limit - here
    if int(room.sum()) > left:
        room = _evenly(room, found.sum(1), left, drawn)
    found[:, inputs] += room


def _evenly(room: Counts, load: Counts, left: int, drawn: np.random.Generator) -> Counts:
    """Take ``left`` units out of ``room`` [outs, inputs], making the outputs' loads as even as possible."""
    taken = np.zeros_like(room)
    for output, units in enumerate(_level(load, room.sum(1), left, drawn)):
        if units:
            places = np.repeat(np.arange(room.shape[1]), room[output])
            taken[output] = np.bincount(drawn.permutation(places)[:units], minlength=room.shape[1])
    return taken


def _level(load: Counts, room: Counts, left: int, drawn: np.random.Generator) -> Counts:
    """Return how many units each output takes, at most its room, so that the loads become level."""
    low, high = int(load.min()), int((load + room).max())
    while low < high:  # the highest level that is not above the budget
        middle = (low + high + 1) // 2
        over = int(np.clip(middle - load, 0, room).sum()) > left
        low, high = (low, middle - 1) if over else (middle, high)
    taken = np.clip(low - load, 0, room)
    more = np.flatnonzero((load <= low) & (taken < room))
    taken[drawn.permutation(more)[: left - int(taken.sum())]] += 1
    return np.asarray(taken)


def milp(problem: Problem) -> Counts:
    """Solve the integer programme with SciPy's HiGHS.

    Raises:
        NumericalError: the solver found nothing.
    """
    from scipy import optimize, sparse

    outs, ins = problem.outs, len(problem.paths)
    cells = outs * ins
    # the unknowns: weights per kernel, then whether an input, an output and a kernel has one
    price = np.concatenate(
        [
            np.tile(problem.path(), outs),
            np.full(ins + outs, problem.node),
            np.full(cells, problem.kernel),
        ]
    )
    rows = sparse.kron(sparse.eye(outs), np.ones((1, ins)))
    columns = sparse.kron(np.ones((1, outs)), sparse.eye(ins))
    total = sparse.hstack([sparse.csr_matrix(np.ones((1, cells))), sparse.csr_matrix((1, cells + ins + outs))])
    linked = sparse.hstack([sparse.vstack([columns, rows, sparse.eye(cells)]), -sparse.eye(ins + outs + cells)])
    upper = np.concatenate([np.full(cells, problem.limit), np.ones(ins + outs + cells)])
    result = optimize.milp(
        -price,
        integrality=np.concatenate([np.ones(cells), np.zeros(ins + outs + cells)]),
        bounds=optimize.Bounds(0, upper),
        constraints=[
            optimize.LinearConstraint(total, problem.count, problem.count),
            optimize.LinearConstraint(linked, 0, np.inf),
        ],
    )
    if result.x is None:
        raise NumericalError(f"the integer programme has no solution: {result.message}. Use solver='greedy'")
    return np.asarray(result.x[:cells].round(), dtype=np.int64).reshape(outs, ins)
