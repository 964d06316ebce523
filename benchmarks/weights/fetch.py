"""`clbench weights fetch FOLDER` by the path that study files name."""

import sys

from clbench.cli import main

if __name__ == "__main__":
    main(["weights", "fetch", *sys.argv[1:]])
