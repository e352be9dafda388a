"""The Fréchet distance between two sets of features, in float64, whatever extracted them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from vaeconv.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float64]


class Moments(NamedTuple):
    """Number, sum and sum of outer products of feature vectors; those of two sets add up.

    Attributes:
        number: Of vectors.
        total: ``[d]`` float64, of the vectors.
        outer: ``[d, d]`` float64, of the vectors.
    """

    number: int
    total: Array
    outer: Array

    def joined(self, other: Moments) -> Moments:
        """Merge two sets."""
        return Moments(
            self.number + other.number, self.total + other.total, self.outer + other.outer
        )

    @property
    def mean(self) -> Array:
        """``[d]``."""
        mean: Array = self.total / self.number
        return mean

    @property
    def covariance(self) -> Array:
        """``[d, d]``, unbiased, as ``numpy.cov`` and torch-fidelity have it."""
        import numpy as np

        mean = self.mean
        covariance: Array = (self.outer - self.number * np.outer(mean, mean)) / (self.number - 1)
        symmetric: Array = (covariance + covariance.T) / 2
        return symmetric


def no_moments(dimensions: int) -> Moments:
    """The moments of nothing."""
    import numpy as np

    return Moments(0, np.zeros(dimensions), np.zeros((dimensions, dimensions)))


def moments_of(features: Any) -> Moments:
    """Sum up feature vectors ``[n, d]`` in float64."""
    import numpy as np

    wide = np.asarray(features, dtype=np.float64)
    return Moments(len(wide), wide.sum(axis=0), wide.T @ wide)


def frechet_distance(one: Moments, other: Moments, *, factor: Array | None = None) -> float:
    """Compute ``|m1 - m2|² + tr(S1 + S2 - 2 (S1 S2)^½)``.

    Dowson and Landau 1982; Heusel et al. 2017 for the features of images. With ``Sᵢ = Bᵢ Bᵢᵀ``
    the trace of the root is the sum of the singular values of ``B1ᵀ B2``: real by construction, and
    precise also where covariances have no full rank, where a matrix square root of the product is
    not to be trusted.

    Args:
        one: Moments of a set.
        other: Of another.
        factor: :func:`factor_of` the first's covariance, where it is known.

    Returns:
        NaN where features are not finite.

    Raises:
        InputError: There are fewer than two vectors in a set.
    """
    import numpy as np

    if min(one.number, other.number) < 2:
        raise InputError("a Fréchet distance needs at least two images")
    if not all(np.isfinite(moments.outer).all() for moments in (one, other)):
        return float("nan")
    gap = one.mean - other.mean
    mine, theirs = one.covariance, other.covariance
    if factor is None:
        factor = factor_of(mine)
    shared = np.linalg.svd(factor.T @ factor_of(theirs), compute_uv=False).sum()
    distance = gap @ gap + np.trace(mine) + np.trace(theirs) - 2 * shared
    return max(float(distance), 0.0)


def factor_of(covariance: Array) -> Array:
    """Factor a covariance ``[d, d]`` into ``B Bᵀ``; ``B`` is ``[d, rank]``."""
    import numpy as np

    values, vectors = np.linalg.eigh(covariance)
    # What rounding leaves of eigenvalues that are zero, some of it negative.
    floor = values.max(initial=0.0) * len(values) * np.finfo(np.float64).eps
    kept = values > floor
    factor: Array = vectors[:, kept] * np.sqrt(values[kept])
    return factor
