"""Student's t distribution without scipy: tail and quantile, for tests of a few repetitions or pairs.

The tail is a regularized incomplete beta function, P(T > t) = ½ · I(ν / (ν + t²); ν/2, ½) for t ≥ 0 (Abramowitz &
Stegun 26.7.1), by its continued fraction (NIST DLMF 8.17.22) in Lentz's form.
"""

from __future__ import annotations

import math
from functools import lru_cache

TINY = 1e-300  # stands for 0 in Lentz's denominators
PRECISION = 1e-15
TERMS = 10_000  # the fraction needs about the square root of its larger argument; this is a guard, not a limit


def tail(t: float, df: float) -> float:
    """P(T > t) with ``df`` > 0 degrees of freedom, which need not be whole."""
    if t < 0:
        return 1.0 - tail(-t, df)
    return 0.5 * _beta(df / (df + t * t), df / 2, 0.5)


@lru_cache(maxsize=4096)
def quantile(p: float, df: float) -> float:
    """The t that a fraction ``p`` of the distribution lies below, 0 < p < 1, to about 12 digits."""
    if p < 0.5:
        return -quantile(1 - p, df)
    low, high = 0.0, 1.0
    while tail(high, df) > 1 - p:
        low, high = high, 2 * high
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if tail(middle, df) > 1 - p else (low, middle)
    return (low + high) / 2


def _beta(x: float, a: float, b: float) -> float:
    """The regularized incomplete beta function I(x; a, b)."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    )  # symmetric in (x, a) and (1 − x, b)
    if x < (a + 1) / (a + b + 2):
        return front * _fraction(x, a, b) / a
    return 1 - front * _fraction(1 - x, b, a) / b


def _fraction(x: float, a: float, b: float) -> float:
    """The continued fraction, from its front; it converges fast for x < (a + 1) / (a + b + 2)."""
    c, d = 1.0, 1 / _not_zero(1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, TERMS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1 / _not_zero(1 + term * d)
            c = _not_zero(1 + term / c)
            value *= c * d
        if abs(c * d - 1) < PRECISION:
            break
    return value


def _not_zero(value: float) -> float:
    return value if abs(value) > TINY else TINY
