"""Recompute accuracies, intervals and p-values over seeds of a report from its records, without clbench.

    python benchmarks/recompute.py reports/lora_question/vision_task [FOLDER ...]

It prints each cell of report.md that differs, and how many agree. It supports up to 10 seeds. Use recompute_samples.py
for reports with tests over seeds and samples.
"""

import itertools
import json
import re
import sys
from pathlib import Path

import numpy as np
from scipy import stats


def interval(values):
    """Return a mean in percent and half of its 95% interval: Student's t below 8 seeds, else expanded BCa."""
    x, n, t = 100 * np.asarray(values), len(values), stats.t.ppf(0.975, len(values) - 1)
    if n < 8 or np.ptp(x) <= 1e-10:
        return x.mean(), t * x.std(ddof=1) / n**0.5
    counts = np.array([np.bincount(c, minlength=n) for c in itertools.combinations_with_replacement(range(n), n)])
    weights, off = stats.multinomial.pmf(counts, n, [1 / n] * n), x - x.mean()
    means, close = counts @ off / n, 1e-9 * abs(off).max()
    bias = stats.norm.ppf(weights[means < -close].sum() + weights[abs(means) <= close].sum() / 2)
    a = (off**3).sum() / (6 * (off**2).sum() ** 1.5)
    z = bias + np.array([-1, 1]) * (n / (n - 1)) ** 0.5 * t
    order = np.argsort(means)
    places = np.searchsorted(weights[order].cumsum(), stats.norm.cdf(bias + z / (1 - a * z)))
    return x.mean(), np.ptp(means[order[np.minimum(places, len(order) - 1)]]) / 2


def differences(first, second):
    """Return the differences of two methods on their shared seeds, and the accuracies of both on these seeds."""
    both = np.array([[x[s] for s in first if s in second] for x in (first, second)])
    return both[0] - both[1], both


def p_value(first, second, family):
    """Return the p-value of two methods in a family of `family` tests, or 2 if one is near 100% and not tested."""
    d, (first, second) = differences(first, second)
    if np.ptp(d) + abs(d[0]) > 1e-12 and any(1 - np.mean(x) < 3 * np.std(x, ddof=1) - 1e-12 for x in (first, second)):
        return 2.0
    n = len(d)  # without deviation there is no t-test, so use the p-value of sign flips
    if np.ptp(d) > 1e-12 and (n < 8 or family * 2.0 ** (1 - n) > 0.05):
        return stats.ttest_1samp(d, 0).pvalue
    return (abs(np.array(list(itertools.product((-1, 1), repeat=n))) @ d) >= abs(d.sum()) - 1e-10 * abs(d).sum()).mean()


def holm(ps):
    """Return Holm-corrected p-values."""
    stepped = np.maximum.accumulate(np.minimum(1, np.sort(ps) * np.arange(len(ps), 0, -1)))
    return stepped[np.argsort(np.argsort(ps, kind="stable"))]


def check(folder, *tools):
    """Return a string for each cell of a report: empty if the cell agrees, else both values."""
    sections = re.split("^## ", (folder / "report.md").read_text().replace("\\", ""), flags=re.M)
    records = [r for p in folder.glob("records/*.json") if (r := json.loads(p.read_text()))["status"] == "done"]
    return [cell for text in sections if "Names for --methods" in text for cell in check_section(text, records, *tools)]


def check_section(section, records, value_of=lambda record, _: np.mean(record["R"][-1]), ci=interval, test=p_value):
    """Return the strings of a section, which is about one scenario."""
    ids = dict(e.split(" = ") for e in re.search(r"for --methods: (.*?)\.(?=\n| Names)", section)[1].split("; "))
    scenario = re.search(r"(\w+)-IL", section)[1].lower()
    records = sorted((r for r in records if r["trial"]["scenario"] == scenario), key=lambda r: r["trial"]["seed"])
    short = {r["label"]: re.sub(":recipe[.][^:]*", "", r["label"]) for r in records}
    labels = {s if list(short.values()).count(s) == 1 else label: label for label, s in short.items()}
    series = {name: {r["trial"]["seed"]: value_of(r, records) for r in records if r["label"] == labels[id_]}
              for name, id_ in {**dict(zip(labels, labels, strict=True)), **ids}.items()}
    cells, blocks = [], section.split("\n\n")

    def compare(where, shown, expected):  # a value halfway between two digits may be rounded up or down
        numbers = [*map(float, shown.split("±"))] if "±" in shown else []
        same = np.allclose(numbers, expected, 0, 0.0050001) if numbers else shown == expected
        cells.append("" if same else f"{where}: report {shown}, recomputed {expected}")
    for before, table in zip(["", *blocks], blocks, strict=False):
        rows = [[c.strip(" *") for c in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]
        named = [(name, row) for row in rows if (name := re.sub(r" [†‡§¶※△○]+$", "", row[0])) in series]
        for name, row in named if rows and rows[0][2:3] == ["accuracy (%) ↑"] else []:
            compare(f"{name}, accuracy", row[2], ci([*series[name].values()]))
        if title := re.fullmatch(r"\*\*Accuracy: each method minus (.*?)(, which .*)?\*\*", before):
            family, pairs = int(re.search(r"corrected for (\d+)", table)[1]), [(name, title[1]) for name, _ in named]
            pairs += itertools.combinations([name for name, _ in named], 2) if family > len(pairs) else []  # all pairs
            ps = [test(series[first], series[second], family) for first, second in pairs]
            for (name, row), p, corrected in zip(named, ps, holm(ps), strict=False):
                x, where = differences(series[name], series[title[1]])[0], f"{name} minus {title[1]}"
                compare(where, row[2], ci(x))
                for value, cell in zip((p, corrected), row[4:6], strict=True):
                    compare(f"{where}, p", cell, f"{value:.2g}" if p <= 1 else "\N{EN DASH}")
    return cells


if __name__ == "__main__":
    for folder in map(Path, sys.argv[1:]):
        cells = check(folder)
        print(f"{folder}: {cells.count('')} of {len(cells)} cells agree", *filter(None, cells), sep="\n  ")
