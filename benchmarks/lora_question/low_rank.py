"""Say how low the rank of full fine-tuning's change of the weights is, in runs with trials of `independent`.

`python benchmarks/lora_question/low_rank.py RUN ... --out FILE.json`, where the run folders keep what the trials left
(artifacts/). It sums up what `clbench lora spectrum RUN` shows: a weight's change, taken as a matrix, by its singular
values. A weight for q, k and v is taken whole, as an adapter on all layers changes it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import fmean
from typing import Any

from clbench_lora.spectrum import SHARES, Spectrum, energy_at, spectra, unparted
from keeping import keep

RANKS = (1, 2, 4, 8, 16, 32, 64)


def summed_up(spectrum: Spectrum, folder: str) -> dict[str, Any]:
    """Return what is said of a spectrum: ranks that hold shares of each layer's change, and what ranks hold of all."""
    changes = unparted(spectrum.changes)
    layers = []
    for layer in dict.fromkeys(change.layer for change in changes):
        own = [change for change in changes if change.layer == layer]
        layers.append({"layer": layer, "weight": own[0].shape, "full rank": own[0].full_rank,
                       "rank for": {f"{share:g}": round(fmean(c.rank(share) for c in own), 3) for share in SHARES}})
    return {"folder": folder, "setting": spectrum.setting, "method": spectrum.label,
            "seeds": len({change.seed for change in changes}), "changes": len(changes), "layers": layers,
            "energy": {str(rank): round(energy_at(changes, rank), 5) for rank in RANKS}}


def main() -> None:
    """Sum up the spectra of some runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json",
                        help="findings of other runs that it has stay in it")
    given = parser.parse_args()
    rows = [summed_up(spectrum, run.name) for run in given.runs for spectrum in spectra(run)]
    keep(rows, given.out, by=("folder", "method"))


if __name__ == "__main__":
    main()
