"""What is not there is said before anything slow is imported: no torch, no Avalanche, no other plugin."""

import json
import subprocess
import sys

import numpy as np
from safetensors.numpy import save_file

HEAVY = "torch", "torchvision", "avalanche"
WRONG_PATHS = (
    (["--benchmark", "images:nowhere"], "benchmark 'images:nowhere': there is no "),
    (["--benchmark", "images:photos"], "needs a folder for each class, but there are no photos in it"),
    (["--benchmark", "arrays:nowhere.npz"], "benchmark 'arrays:nowhere.npz': there is no "),
    (["--benchmark", "table:nowhere.csv"], "benchmark 'table:nowhere.csv': there is no "),
    (["--benchmark", "text:nowhere.csv:text_column=none"], "text:nowhere.csv"),
    (["--benchmark", "nowhere.py:make"], "benchmark 'nowhere.py:make': no file "),
    (["--weights", "nowhere.safetensors"], "weights nowhere.safetensors cannot be read (No such file or "
     "directory): check the path, which is relative to the current folder"),
)
WRONG_ARRAYS = (
    ("rows.npz", "has no array 'y', only X; expected X and y, or"),
    ("rows.safetensors", "has no array 'y', only X; expected X and y, or"),
    ("split.npz", "has no array 'X_test', only X_train, y_train; expected X and y, or"),
    ("rows.npy", "rows.npy holds the inputs alone; name the file of labels"),
    ("rows.npy:labels=nowhere.npy", "labels = nowhere.npy: there is no "),
    ("rows.npz:labels=rows.npy", "labels = rows.npy is for .npy files"),
    ("torn.npz", "torn.npz: File is not a zip file"),
    ("torn.safetensors", "torn.safetensors: Error while deserializing header"),
    ("rows.h5", "rows.h5 is none of .npz, .safetensors"),
)


def errors(commands, folder, never_imported):
    """Return what `clbench run` says for each of some arguments, in one process that may not import some modules."""
    code = ("import contextlib, io, json, sys\nfrom clbench import cli\nsaid = []\n"
            f"for arguments in {commands!r}:\n"
            "    with contextlib.redirect_stderr(io.StringIO()) as text:\n"
            "        code = cli.call(['run', '--methods', 'naive', '--workers', '0', *arguments])\n"
            f"    imported = sorted({set(never_imported)!r} & set(sys.modules))\n"
            "    assert code == 2 and not imported, (arguments, code, imported)\n"
            "    said.append(text.getvalue())\n"
            "print(json.dumps(said))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr
    assert not (folder / "runs").exists()
    return json.loads(done.stdout)


def test_paths_that_are_not_there_and_arrays_that_lack_labels_are_told_without_torch(tmp_path):
    rows = np.zeros((8, 2), np.float32)
    np.savez(tmp_path / "rows.npz", X=rows)
    np.savez(tmp_path / "split.npz", X_train=rows, y_train=np.arange(8))
    np.save(tmp_path / "rows.npy", rows)
    save_file({"X": rows}, tmp_path / "rows.safetensors")
    for name in ("torn.npz", "torn.safetensors", "rows.h5"):
        (tmp_path / name).write_bytes(b"no arrays")
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    expected = [*WRONG_PATHS, *((["--benchmark", f"arrays:{file}"], error) for file, error in WRONG_ARRAYS)]
    for (arguments, error), text in zip(expected, errors([a for a, _ in expected], tmp_path, HEAVY), strict=True):
        assert error in text, arguments


def test_a_plugin_file_that_is_not_there_is_told_before_other_plugins_are_loaded(tmp_path):
    assert errors([["--plugin", "nowhere.py"]], tmp_path, [*HEAVY, "clbench_naive"]) == [
        f"Error: cannot read the plugin {tmp_path / 'nowhere.py'}: No such file or directory\n"]


def test_a_dry_run_without_the_data_says_so_without_torch(tmp_path):
    code = ("import sys\nfrom clbench import cli\n"
            "assert cli.call(['run', '--methods', 'naive', '--benchmark', 'images:nowhere', '--dry-run']) == 0\n"
            "assert 'torch' not in sys.modules")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("Note: benchmark 'images:nowhere': there is no ")
