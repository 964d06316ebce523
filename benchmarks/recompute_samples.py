"""Recompute means, intervals and p-values over seeds and shared test samples, for recompute.py."""

import base64

import numpy as np
from scipy import stats


def values_of(record, records):
    """Return the mean of a record over tasks, and its answers to single samples if all records share the samples."""
    items = record.get("items")
    if not items or any((other.get("items") or {}).get("ids") != items["ids"] for other in records):
        return np.array([np.mean(record["R"][-1])])
    bits = np.unpackbits(np.frombuffer(base64.b64decode(items["right"]), np.uint8))
    return np.array([np.mean(record["R"][-1]), *bits[:items["count"]]])


def estimate_crossed(values):
    """Return a mean, half of its 95% interval and its p-value, with seeds and samples as crossed random effects."""
    x, (seeds, samples) = values[:, 1:], values[:, 1:].shape
    by_seed, by_sample = x.mean(1, keepdims=True) - x.mean(), x.mean(0) - x.mean()
    s, i, rest = samples * by_seed.var(ddof=1), seeds * by_sample.var(ddof=1), x - x.mean() - by_seed - by_sample
    r = (rest**2).sum() / (seeds - 1) / (samples - 1)  # the mean squares are s, i and r
    spread = s**2 / (seeds - 1) + i**2 / (samples - 1) + r**2 / (seeds - 1) / (samples - 1)
    df = max((s + i - r) ** 2 / spread if spread else 0, min(seeds, samples) - 1)
    mean, error = values[:, 0].mean(), (max(s + i - r, s, i) / seeds / samples) ** 0.5
    p = 2 * stats.t.sf(abs(mean) / error, df) if error > 1e-12 else float(abs(mean) <= 1e-12)
    return 100 * mean, 100 * stats.t.ppf(0.975, df) * error, p
