"""Do the same as recompute.py, also for reports with tests over seeds and the test samples that all seeds share.

    python benchmarks/recompute_samples.py reports/lora_question/ranks [FOLDER ...]

The value of a seed is an array of its mean, followed by its answers to single samples if all seeds share the samples.
"""

import base64
import sys
from pathlib import Path

import numpy as np
import recompute
from scipy import stats


def values_of(record, records):
    """Return the mean of a record over tasks, and its answers to single samples if all records share the samples."""
    mean, items = np.mean(record["R"][-1]), record.get("items")
    if not items or any((other.get("items") or {}).get("ids") != items["ids"] for other in records):
        return np.array([mean])
    bits = np.unpackbits(np.frombuffer(base64.b64decode(items["right"]), np.uint8))
    return np.array([mean, *bits[:items["count"]]])


def interval(values):
    """Return a mean in percent and half of its 95% interval."""
    values = np.asarray(values)
    return crossed(values)[:2] if values.shape[1] > 1 else recompute.interval(values[:, 0])


def p_value(first, second, family):
    """Return the p-value of two methods, or 2 if one is near 100% and not tested."""
    means = ({seed: values[0] for seed, values in by_seed.items()} for by_seed in (first, second))
    p, differences = recompute.p_value(*means, family), recompute.differences(first, second)[0]
    return crossed(differences)[2] if p <= 1 and differences.shape[1] > 1 else p


def crossed(values):
    """Return a mean in percent, half of its 95% interval and its p-value, with seeds and samples as random effects."""
    x, (seeds, samples) = values[:, 1:], values[:, 1:].shape
    by_seed, by_sample = x.mean(1, keepdims=True) - x.mean(), x.mean(0) - x.mean()
    s, i, rest = samples * by_seed.var(ddof=1), seeds * by_sample.var(ddof=1), x - x.mean() - by_seed - by_sample
    r = (rest**2).sum() / (seeds - 1) / (samples - 1)  # the mean squares are s, i and r
    spread = s**2 / (seeds - 1) + i**2 / (samples - 1) + r**2 / (seeds - 1) / (samples - 1)
    df = max((s + i - r) ** 2 / spread if spread else 0, min(seeds, samples) - 1)
    mean, error = values[:, 0].mean(), (max(s + i - r, s, i) / seeds / samples) ** 0.5
    p = 2 * stats.t.sf(abs(mean) / error, df) if error > 1e-12 else float(abs(mean) <= 1e-12)
    return 100 * mean, 100 * stats.t.ppf(0.975, df) * error, p


def check(folder):
    """Return a string for each cell of a report: empty if the cell agrees, else both values."""
    return recompute.check(folder, values_of, interval, p_value)


if __name__ == "__main__":
    for folder in map(Path, sys.argv[1:]):
        cells = check(folder)
        print(f"{folder}: {cells.count('')} of {len(cells)} cells agree", *filter(None, cells), sep="\n  ")
