"""Measure how long it takes to check that the many files of a cached stream are unchanged.

`python benchmarks/speed/many_files.py` writes 50,000 files of 2 kB to a temporary folder. It takes half a minute.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clbench.core.hookspecs import BenchmarkInfo
from clbench.data.contents import SETTLED_NS, contents_of, data_files, index_of

CLASSES, BYTES = 100, 2000


def listed(name: str, options: Mapping[str, Any], data_dir: Path) -> Sequence[Path]:
    """Return the files of `photos:DIR`."""
    return [Path(at, file) for at, _, files in os.walk(name.partition(":")[2]) for file in sorted(files)]


def main() -> None:
    """Print the seconds of a first check, of a check of unchanged files, after touching all files, and of verifying."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=50_000, help="how many (50000)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        photos, streams = Path(place, "photos"), Path(place, "data", "streams")
        for c in range(CLASSES):
            (photos / f"class {c}").mkdir(parents=True)
            for i in range(c, arguments.files, CLASSES):
                (photos / f"class {c}" / f"{i}.png").write_bytes(os.urandom(BYTES))
        time.sleep(SETTLED_NS / 1e9)
        info = BenchmarkInfo(f"photos:{photos}", "", "", files=listed)
        for label in ("first", "unchanged", "unchanged", "touched", "verified"):
            if label == "touched":
                for path in listed(info.name, {}, streams.parent):
                    os.utime(path)
                time.sleep(SETTLED_NS / 1e9)
            began, cpu = time.perf_counter(), time.process_time()
            files = data_files(info, {}, streams.parent)
            found = time.perf_counter()
            contents_of(files, index_of(streams, info.name, files), verify=label == "verified")
            print(f"{len(files.paths):,} files, {label}: {time.perf_counter() - began:.2f} s, of these listing "
                  f"{found - began:.2f}; processor {time.process_time() - cpu:.2f} s")


if __name__ == "__main__":
    main()
