"""Run `clbench weights fetch FOLDER`. Study files name this script."""

import sys

from clbench.cli import main

if __name__ == "__main__":
    main(["weights", "fetch", *sys.argv[1:]])
