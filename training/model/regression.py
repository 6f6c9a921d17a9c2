"""Logistic regression without Spark: Spark ML's own fit, step by step, over vectors that stay where they are.

What is fitted here is served as Spark's model, so it must be what Spark would have fitted. Ten iterations do not reach
the optimum, and then the way there decides: this is Spark's objective (features centred and scaled to unit variance, an
elastic net on the scaled coefficients, the intercept free, at first the classes' log odds) and Breeze's OWL-QN with its
line search, in the same order. Tests hold the two against each other. scikit-learn's solvers take other ways, so after
ten iterations they are at other coefficients; that is why this is own code.

Rows are read in blocks, so a fit needs little more memory than the float32 vectors, and each block is added to the
sum in turn: the same rows give the same coefficients, bit for bit, on the same kind of machine.

References
----------
G. Andrew, J. Gao, "Scalable training of L1-regularized log-linear models", ICML 2007 (OWL-QN).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from schemas.modelcard import BINARY
from training.arrays import Features, Floats, Ints
from training.model.classifier import ClassifierSettings, Head

_BLOCK_ROWS = 2048  # of 1,280 values, 21 MB as float64: both products read it from the cache that is next to memory
_MEMORY = 10  # pairs that OWL-QN keeps, as Spark asks for
_TOLERANCE = 1e-6  # Spark's default
_VALUES_KEPT = 10
_ARMIJO, _WOLFE = 1e-4, 0.9
_GROW = 2.1
_MAX_STEPS = 20
_MIN_STEP, _MAX_STEP = 1e-10, 1e10
_TINY_GRADIENT = 1e-8

_Evaluation = tuple[float, Floats]
"""A value and its gradient."""


class _SearchFailedError(Exception):
    """No step along a direction was good enough."""


def fit_regression(features: Features, rows: Ints, labels: Ints, settings: ClassifierSettings, n_classes: int) -> Head:
    """Fit as Spark's ``LogisticRegression`` does.

    Parameters
    ----------
    features : numpy.ndarray
        float32, shape (n, n_features); not copied.
    rows : numpy.ndarray
        int64, shape (n_rows,): which of them to fit on, rising.
    labels : numpy.ndarray
        int64, shape (n_rows,): the rows' classes; every class occurs.
    settings : ClassifierSettings
        How; with some L1 penalty, for without one Spark searches in another way.
    n_classes : int
        Number of classes.

    Returns
    -------
    Head
        The coefficients and intercepts.

    Raises
    ------
    ValueError
        A class does not occur, or there is no L1 penalty (a mistake of the program).
    """
    from threadpoolctl import threadpool_limits  # noqa: PLC0415  comes with scikit-learn, in the train extra

    counts = np.bincount(labels, minlength=n_classes)
    if len(counts) != n_classes or not counts.all():
        msg = f"images of each class are {counts.tolist()}, expected some of each of {n_classes}"
        raise ValueError(msg)
    if not settings.reg_param * settings.elastic_net_param > 0:
        msg = f"{settings.describe()}, expected an L1 penalty"
        raise ValueError(msg)
    with threadpool_limits(1):  # more threads share a sum out differently, and memory is what the products wait for
        objective = _Objective.over(features, rows, labels, counts, settings)
        weights = _minimize(objective, objective.start(), objective.l1, settings.max_iter)
        return objective.unscale(weights)


@dataclass(frozen=True, eq=False)
class _Objective:
    """The mean log loss and the L2 part of the penalty, of scaled coefficients and then intercepts in one vector."""

    features: Features
    rows: Ints
    labels: Ints
    weights: Floats  # of an image of each class
    totals: Floats  # weights of all images of each class
    mean: Floats
    scale: Floats  # 1 / standard deviation; 0 where a feature never changes, which keeps its coefficient at 0
    l1: Floats
    l2: float

    @classmethod
    def over(
        cls, features: Features, rows: Ints, labels: Ints, counts: Ints, settings: ClassifierSettings
    ) -> "_Objective":
        weights = counts.sum() / (counts.size * counts) if settings.class_weights else np.ones(counts.size)
        mean, deviation = _moments(features, rows, weights[labels])
        scale = np.divide(1.0, deviation, out=np.zeros_like(deviation), where=deviation > 0)
        n_sets = 1 if counts.size == BINARY else counts.size
        l1 = np.full(n_sets * (mean.size + 1), settings.reg_param * settings.elastic_net_param)
        l1[n_sets * mean.size :] = 0
        l2 = settings.reg_param * (1 - settings.elastic_net_param)
        # Summed one by one, as Spark does: with classes weighted alike the start is what rounding leaves of 0, and its
        # sign decides on which side of 0 the first step may go.
        totals = np.array([np.add.accumulate(np.full(n, w))[-1] for n, w in zip(counts, weights, strict=True)])
        return cls(features, rows, labels, weights, totals, mean, scale, l1, l2)

    @property
    def n_sets(self) -> int:
        """Sets of coefficients: one of two classes, else one for each class."""
        return 1 if self.totals.size == BINARY else int(self.totals.size)

    def start(self) -> Floats:
        """Begin without coefficients, at the classes' log odds."""
        weights = np.zeros(self.l1.size)
        # Of more than two classes Spark counts one more image of each.
        logs = np.log(self.totals) if self.n_sets == 1 else np.log1p(self.totals)
        weights[-self.n_sets :] = logs[1] - logs[0] if self.n_sets == 1 else logs - logs.mean()
        return weights

    def split(self, weights: Floats) -> tuple[Floats, Floats]:
        """Give coefficients as they apply to centred features that are not scaled, and intercepts."""
        coefficients = weights[: -self.n_sets].reshape(self.n_sets, -1) * self.scale
        return coefficients, weights[-self.n_sets :]

    def unscale(self, weights: Floats) -> Head:
        """Give what applies to features as they are; of several classes the intercepts' mean is 0, as in Spark."""
        coefficients, intercepts = self.split(weights)
        intercepts = intercepts - coefficients @ self.mean
        return Head(coefficients, intercepts if self.n_sets == 1 else intercepts - intercepts.mean())

    def __call__(self, weights: Floats) -> _Evaluation:
        coefficients, intercepts = self.split(weights)
        intercepts = intercepts - coefficients @ self.mean
        loss, product, rest = 0.0, np.zeros_like(coefficients), np.zeros(self.n_sets)
        for values, labels in self._blocks():
            margins = values @ coefficients.T + intercepts
            losses, error = (_binary if self.n_sets == 1 else _multinomial)(margins, labels)
            own = self.weights[labels]
            loss += float(own @ losses)
            error *= own[:, None]
            product += error.T @ values
            rest += error.sum(axis=0)
        n, scaled = self.totals.sum(), weights[: -self.n_sets]
        gradient = ((product - rest[:, None] * self.mean) * self.scale / n).ravel() + self.l2 * scaled
        return loss / n + self.l2 / 2 * float(scaled @ scaled), np.concatenate([gradient, rest / n])

    def _blocks(self) -> Iterator[tuple[Floats, Ints]]:
        for start in range(0, len(self.rows), _BLOCK_ROWS):
            part = slice(start, start + _BLOCK_ROWS)
            yield self.features[self.rows[part]].astype(np.float64), self.labels[part]


def _moments(features: Features, rows: Ints, weights: Floats) -> tuple[Floats, Floats]:
    """Give mean and standard deviation (unbiased) of each feature, in one pass over blocks (Chan's formula)."""
    first = features[rows[0]].astype(np.float64)  # taken off, so that what never changes deviates by 0, not by rounding
    total, mean, squares = 0.0, np.zeros(features.shape[1]), np.zeros(features.shape[1])
    for start in range(0, len(rows), _BLOCK_ROWS):
        part = slice(start, start + _BLOCK_ROWS)
        block, own = features[rows[part]].astype(np.float64) - first, weights[part]
        weight = float(own.sum())
        block_mean = own @ block / weight
        difference = block_mean - mean
        before, total = total, total + weight
        mean = mean + difference * (weight / total)
        squares += own @ (block - block_mean) ** 2 + difference**2 * (before * weight / total)
    freedom = total - float(weights @ weights) / total
    return first + mean, np.sqrt(squares / freedom) if freedom > 0 else np.zeros_like(mean)


def _binary(margins: Floats, labels: Ints) -> tuple[Floats, Floats]:
    """Give each image's log loss, and its derivative by the margin, shape (n, 1)."""
    signed = np.where(labels == 1, -margins[:, 0], margins[:, 0])
    return np.logaddexp(0.0, signed), (1 / (1 + np.exp(-margins[:, 0])) - labels)[:, None]


def _multinomial(margins: Floats, labels: Ints) -> tuple[Floats, Floats]:
    margins = margins - margins.max(axis=1, keepdims=True)
    powers = np.exp(margins)
    total = powers.sum(axis=1)
    own = np.arange(len(labels)), labels
    losses = np.log(total) - margins[own]
    error = powers / total[:, None]
    error[own] -= 1
    return losses, error


# --- OWL-QN -----------------------------------------------------------------------------------------------------------


def _minimize(function: Callable[[Floats], _Evaluation], start: Floats, l1: Floats, max_iter: int) -> Floats:
    """Minimise ``function(x) + sum(l1 * abs(x))`` as Breeze's ``OWLQN`` does."""
    x, (value, gradient) = start, function(start)
    adjusted, pseudo = _adjust(x, value, gradient, l1)
    initial, values = adjusted, [adjusted]
    pairs: list[tuple[Floats, Floats]] = []
    iteration, failed = 0, False
    while iteration < max_iter and not _converged(adjusted, pseudo, initial, values):
        try:
            direction = _descend(pseudo, pairs)
            first = iteration == 0
            step = 0.5 / float(np.linalg.norm(gradient)) if first else 1.0
            search = _LineSearch(function, x, direction, value, adjusted, pseudo, l1)
            new_x, value, new_gradient = search.run(step, shrink=0.1 if first else 0.5)
        except _SearchFailedError:
            if failed:
                break
            failed, pairs = True, []  # once more, along the gradient
            continue
        pairs = [*pairs, (new_x - x, new_gradient - gradient)][-_MEMORY:]
        x, gradient, failed = new_x, new_gradient, False
        adjusted, pseudo = _adjust(x, value, gradient, l1)
        values = [*values, adjusted][-_VALUES_KEPT:]
        iteration += 1
    return x


def _adjust(x: Floats, value: float, gradient: Floats, l1: Floats) -> _Evaluation:
    """Add the L1 part: where a coefficient is 0, the slope on the side that goes down, or none."""
    above, below = gradient + l1, gradient - l1
    at_zero = np.where(below > 0, below, np.where(above < 0, above, 0.0))
    sides = np.where(x == 0, at_zero, gradient + np.sign(x) * l1)
    return value + float(np.abs(l1 * x).sum()), np.where(l1 == 0, gradient, sides)


def _converged(adjusted: float, pseudo: Floats, initial: float, values: list[float]) -> bool:
    small = float(np.linalg.norm(pseudo)) <= max(_TOLERANCE * abs(adjusted), _TINY_GRADIENT)
    return small or (len(values) > 1 and abs(adjusted - max(values)) <= _TOLERANCE * initial)


def _descend(pseudo: Floats, pairs: list[tuple[Floats, Floats]]) -> Floats:
    """Give the quasi-Newton direction (two loops), without what points up the slope."""
    direction, shares = pseudo.copy(), []
    for step, change in reversed(pairs):
        share = float(step @ direction) / float(step @ change)
        shares.append(share)
        direction -= share * change
    if pairs:
        step, change = pairs[-1]
        direction *= float(step @ change) / float(change @ change)
    for (step, change), share in zip(pairs, reversed(shares), strict=True):
        direction += step * (share - float(change @ direction) / float(step @ change))
    return np.where(-direction * pseudo < 0, -direction, 0.0)


@dataclass(frozen=True, eq=False)
class _LineSearch:
    """Backtracking from one point along one direction, within the orthant that the point and its slope are in."""

    function: Callable[[Floats], _Evaluation]
    x: Floats
    direction: Floats
    value: float
    adjusted: float
    pseudo: Floats
    l1: Floats

    def run(self, step: float, *, shrink: float) -> tuple[Floats, float, Floats]:
        """Give the point, its value and its gradient, both without the L1 part."""
        slope = float(self.pseudo @ self.direction)
        if slope > 0:
            raise _SearchFailedError
        orthant = np.where(self.x != 0, np.sign(self.x), np.sign(-self.pseudo))
        for number in range(_MAX_STEPS + 1):
            x = self.x + self.direction * step
            x = np.where(np.sign(x) == orthant, x, 0.0)
            value, gradient = self.function(x)
            adjusted, pseudo = _adjust(x, value, gradient, self.l1)
            own_slope = float(pseudo @ self.direction)
            # Breeze judges the first step by the value it starts from, without its L1 part; so must this.
            judged = adjusted if number else self.value
            if judged > self.adjusted + step * slope * _ARMIJO:
                factor = shrink
            elif own_slope < _WOLFE * slope:
                factor = _GROW
            elif own_slope > -_WOLFE * slope:
                factor = shrink
            else:
                return x, value, gradient
            step *= factor
            if not _MIN_STEP <= step <= _MAX_STEP:
                break
        raise _SearchFailedError
