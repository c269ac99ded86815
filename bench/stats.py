"""The few statistics that the tables need: quantiles, paired ratios, a slope."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any


def quantile(values: Sequence[float], q: float) -> float:
    """Give the value below which a part `q` (0 to 1) of the values lies, between two of them where needed."""
    if not values:
        raise ValueError("there are no values")
    ordered = sorted(values)
    place = q * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Say how values lie: least, most, p50, p95, p99, and how many there are."""
    quantiles = {f"p{round(q * 100)}": quantile(values, q) for q in (0.5, 0.95, 0.99)}
    return {"n": len(values), "min": min(values), **quantiles, "max": max(values)}


def paired(ours: Sequence[float], base: Sequence[float]) -> dict[str, Any]:
    """Compare what was measured in turn: the ratio of each pair, their median, and the middle half of them.

    A machine that is slower for a minute slows both of a pair, so their ratio stays.
    """
    ratios = [a / b for a, b in zip(ours, base, strict=True)]
    return {
        "n": len(ratios),
        "ratio": statistics.median(ratios),
        "low": quantile(ratios, 0.25),
        "high": quantile(ratios, 0.75),
    }


def line(xs: Sequence[float], ys: Sequence[float]) -> dict[str, float]:
    """Lay the line of least squares through points: y = slope x + intercept."""
    slope, intercept = statistics.linear_regression(xs, ys)
    return {"slope": slope, "intercept": intercept}
