import errno
import subprocess
import sys

import torch
from safetensors import safe_open

from clbench.core.artifacts import save_tensors


def test_the_same_tensors_and_metadata_are_the_same_bytes(tmp_path):
    """safetensors itself writes metadata in an order that differs from one call to the next."""
    tensors = {"b": torch.arange(3), "a": torch.ones(2, 2)}
    metadata = {name: f'"{name}" é {7 * i}' for i, name in enumerate("qwertzuiop")}
    files = [tmp_path / f"{i}.safetensors" for i in range(4)]
    for file, order in zip(files, (sorted(metadata), sorted(metadata, reverse=True), metadata, metadata), strict=True):
        save_tensors(file, tensors, {name: metadata[name] for name in order})
    assert len({file.read_bytes() for file in files}) == 1
    with safe_open(files[0], "pt") as kept:
        assert kept.metadata() == metadata
        assert all(torch.equal(kept.get_tensor(name), tensor) for name, tensor in tensors.items())


FULL = """
import resource, sys
from pathlib import Path
import torch
from clbench.core.artifacts import save_tensors
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
try:
    save_tensors(Path(sys.argv[1]), {"a": torch.zeros(1_000_000)})
except OSError as error:
    print(error.errno, error.strerror)
"""


def test_a_file_that_cannot_be_written_is_an_error_of_the_system(tmp_path):
    """safetensors raises an error of its own, which is no OSError."""
    done = subprocess.run([sys.executable, "-c", FULL, tmp_path / "a.safetensors"], capture_output=True, text=True)
    assert done.stdout == f"{errno.EFBIG} File too large\n", done.stderr
    assert list(tmp_path.iterdir()) == []
