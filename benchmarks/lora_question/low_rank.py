"""Compute how low the rank of full fine-tuning's change of the weights is, in runs with trials of `independent`.

`python benchmarks/lora_question/low_rank.py RUN ... --out FILE.json`, with run folders that have saved weights
(artifacts/). It summarizes the output of `clbench lora spectrum RUN`: the singular values of the change of each weight
matrix. A combined weight of q, k and v counts as one matrix, because an adapter on all layers changes it as a whole.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import fmean
from typing import Any

from clbench_lora.spectrum import SHARES, Spectrum, energy_at, spectra, unparted
from json_results import merge_results

RANKS = (1, 2, 4, 8, 16, 32, 64)


def summarize_spectrum(spectrum: Spectrum, folder: str) -> dict[str, Any]:
    """Return the ranks that hold given shares of each layer's change, and the share of the change at some ranks."""
    changes = unparted(spectrum.changes)
    layers = []
    for layer in dict.fromkeys(change.layer for change in changes):
        of_layer = [change for change in changes if change.layer == layer]
        layers.append({"layer": layer, "weight": of_layer[0].shape, "full rank": of_layer[0].full_rank,
                       "rank for": {f"{share:g}": round(fmean(change.rank(share) for change in of_layer), 3)
                                    for share in SHARES}})
    return {"folder": folder, "setting": spectrum.setting, "method": spectrum.label,
            "seeds": len({change.seed for change in changes}), "changes": len(changes), "layers": layers,
            "energy": {str(rank): round(energy_at(changes, rank), 5) for rank in RANKS}}


def main() -> None:
    """Summarize the spectra of some runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json",
                        help="file of the results; results of other runs in it stay")
    arguments = parser.parse_args()
    results = [summarize_spectrum(spectrum, run.name) for run in arguments.runs for spectrum in spectra(run)]
    merge_results(results, arguments.out, by=("folder", "method"))


if __name__ == "__main__":
    main()
