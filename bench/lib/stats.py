# SPDX-License-Identifier: Apache-2.0
"""Statistics of repeated measurements, and of ratios of interleaved pairs. Nothing here assumes a distribution."""
import math
import statistics


def quantile(values, share):
    """Nearest rank: a value that was measured, never one between two."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def interval(values, confidence=0.95):
    """Of the median, by signs: the k-th smallest and largest value such that a fair coin falls outside with less than 1 - confidence.
    None for fewer than six values: no such interval exists there."""
    n, ordered = len(values), sorted(values)
    outside, k = 0.0, -1
    while k < n:
        outside += math.comb(n, k + 1) / 2 ** n
        if 2 * outside > 1 - confidence:
            break
        k += 1
    return None if k < 0 else [ordered[k], ordered[n - 1 - k]]


def summary(values):
    """p99 needs 100 values: below that the maximum says more."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values),
            "p99": quantile(values, 0.99) if len(values) >= 100 else None, "n": len(values)}


def ratios(ours, theirs):
    """Pair by pair: what was measured in the same second is compared."""
    return [a / b for a, b in zip(ours, theirs)]


def line(xs, ys):
    """Least squares: (fixed part, slope)."""
    mx, my = statistics.fmean(xs), statistics.fmean(ys)
    wide = sum((x - mx) ** 2 for x in xs)
    slope = sum((x - mx) * (y - my) for x, y in zip(xs, ys)) / wide if wide else 0.0
    return my - slope * mx, slope
