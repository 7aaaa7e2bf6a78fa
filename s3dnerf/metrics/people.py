"""Statistics over people. A person may have several clips, which are not independent of each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

BOOTSTRAP_SAMPLES = 2000
CONFIDENCE = 0.95


def measure_log_spread(values: np.ndarray, people: Sequence[str], weights: np.ndarray | None = None) -> np.ndarray:
    """Compute the standard deviation over people of the natural logarithm of positive values such as gains.

    The logarithms of the clips of a person are averaged first. The deviation is that of a sample (divided by n - 1).

    Args:
        values: one per clip, ``[N]``. Values that are NaN or not positive are ignored.
        people: the person of each clip.
        weights: how often each clip counts, ``[..., N]``, equal for all clips of a person, as from
            :func:`draw_people`; once by default.

    Returns:
        ``float64 [...]``, NaN for fewer than two people.
    """
    means, counts = _average_logarithms(values, people, weights)
    total = counts.sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        center = (counts * means).sum(axis=-1) / total
        squares = (counts * np.square(means - center[..., None])).sum(axis=-1)
        return np.where(total > 1, np.sqrt(squares / (total - 1)), np.nan)


def measure_geometric_mean(values: np.ndarray, people: Sequence[str], weights: np.ndarray | None = None) -> np.ndarray:
    """Compute the geometric mean over people; arguments and treatment of clips as in :func:`measure_log_spread`.

    Returns:
        ``float64 [...]``, NaN without a positive value.
    """
    means, counts = _average_logarithms(values, people, weights)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.exp((counts * means).sum(axis=-1) / counts.sum(axis=-1))


def measure_weighted_mean(values: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Compute the mean over clips of values ``[N]``, ignoring NaN, with weights as in :func:`measure_log_spread`."""
    values, weights = np.asarray(values, np.float64), _default_weights(values, weights)
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        return weights[..., known] @ values[known] / weights[..., known].sum(axis=-1)


def measure_ratio_of_means(values: np.ndarray, reference: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Compute the mean over clips of values ``[N]`` over that of a reference ``[N]``, from the clips known in both.

    Unlike a mean of ratios it is not dominated by clips whose reference is close to 0.
    """
    known = np.isfinite(values) & np.isfinite(reference)
    one, other = (measure_weighted_mean(np.where(known, array, np.nan), weights) for array in (values, reference))
    with np.errstate(invalid="ignore", divide="ignore"):
        return one / other


def draw_people(people: Sequence[str], samples: int = BOOTSTRAP_SAMPLES, seed: int = 0) -> np.ndarray:
    """Draw bootstrap samples of people, as many as there are, with replacement; each brings all of its clips.

    Args:
        people: the person of each clip, N.
        samples: number of samples S.
        seed: of the random numbers.

    Returns:
        How often each clip counts in each sample, ``float64 [S, N]``.
    """
    names, person = np.unique(np.asarray(people), return_inverse=True)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(names), np.full(len(names), 1.0 / len(names)), size=samples)
    return drawn[:, person].astype(np.float64)


def bootstrap_interval(statistic: Callable[[np.ndarray], np.ndarray], people: Sequence[str]) -> tuple[float, float]:
    """Compute the 95% percentile bootstrap interval over people of a statistic.

    Args:
        statistic: weights ``[S, N]`` to values ``[S]``, as :func:`measure_weighted_mean` with its values given.
        people: the person of each of N clips.

    Returns:
        Lower and upper end; NaN for fewer than two people. Samples whose statistic is NaN are ignored.
    """
    if len(set(people)) < 2:
        return float("nan"), float("nan")
    values = statistic(draw_people(people))
    values = values[np.isfinite(values)]
    if not len(values):
        return float("nan"), float("nan")
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _average_logarithms(
    values: np.ndarray, people: Sequence[str], weights: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean logarithm of each person with positive values ``[P]``, and the persons' weights ``[..., P]``."""
    values, weights = np.asarray(values, np.float64), _default_weights(values, weights)
    by_person: dict[str, list[int]] = {}
    for index in np.flatnonzero(values > 0).tolist():
        by_person.setdefault(people[index], []).append(index)
    means = np.array([np.log(values[clips]).mean() for clips in by_person.values()])
    return means, weights[..., [clips[0] for clips in by_person.values()]]


def _default_weights(values: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    return np.ones(len(values)) if weights is None else weights
