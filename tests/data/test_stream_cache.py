import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.hostile import write_distribution
from helpers.streams import permuted, raw

from clbench.core import options as opt
from clbench.core.errors import StoreError
from clbench.core.files import default_data_dir
from clbench.core.registry import discover
from clbench.data import stream_cache
from clbench.data.datasets import MNIST_FILES, cifar_file, folder
from clbench.experiment.trial import Resolved


@pytest.fixture(scope="module")
def registry():
    return discover()


def named(registry, name="split-mnist-5k", **options):
    return Resolved(name=name, options=opt.validate(registry.benchmark(name).options, options, name, "").model_dump())


def load(registry, folder, build=raw, seed=0, **options):
    return stream_cache.read_or_build(named(registry, **options), seed, folder, registry, build)


def never():
    raise AssertionError("built though cached")


def test_a_stream_comes_back_as_it_was_written(registry, tmp_path):
    source = raw(((3, 0), (2, 1)), mean=(0.5,), std=(0.25,), notes=("slow",))
    for build in (lambda: source, never):
        found = load(registry, tmp_path, build)
        assert found.digest == source.digest and found.orders == source.orders
        assert (found.mean, found.std, found.notes) == (source.mean, source.std, source.notes)
        assert torch.equal(found.test[1].x, source.test[1].x)
    assert [p.suffix for p in (tmp_path / "streams").glob("*")] == [".safetensors"]


def test_rows_of_tests_come_back_and_change_no_digest(registry, tmp_path):
    plain = raw()
    rows = [torch.tensor([3, 1, 4, 15, 9, 2, 6, 5]), torch.tensor([35, 8, 97, 93, 23, 84, 62, 64])]
    source = replace(plain, test=tuple(replace(s, rows=r) for s, r in zip(plain.test, rows, strict=True)))
    assert source.digest == plain.digest
    for build in (lambda: source, never):
        found = load(registry, tmp_path, build)
        assert all(torch.equal(s.rows, r) for s, r in zip(found.test, rows, strict=True))
        assert found.train[0].rows is None and found.digest == plain.digest
    (file,) = (tmp_path / "streams").glob("*.safetensors")
    file.write_bytes(file.read_bytes().replace(rows[1].numpy().tobytes(), rows[0].numpy().tobytes()))
    again = load(registry, tmp_path, lambda: source)
    assert torch.equal(again.test[1].rows, rows[1]) and "built again: its tensors are not those" in again.notes[0]


def test_permuted_tasks_are_stored_once(registry, tmp_path):
    source, _ = permuted(tasks=4, n=500)
    found = [load(registry, tmp_path, build) for build in (lambda: source, never)]
    assert all(f.digest == source.digest and f.train[1].x is f.train[3].x for f in found)
    (file,) = (tmp_path / "streams").glob("*.safetensors")
    assert file.stat().st_size < 1.5 * (2 * 500 * 9 + 8 * 500 * 8)


def test_options_and_a_seed_that_matters_have_files_of_their_own(registry):
    keys = {stream_cache.key_of(named(registry, **o), seed, registry)
            for o, seed in (({}, 0), ({"tasks": 2}, 0), ({"normalize": True}, 0), ({"class_order": "seed"}, 0),
                            ({"class_order": "seed"}, 1), ({"name": "split-mnist"}, 0), ({"name": "permuted-mnist"}, 0),
                            ({"name": "permuted-mnist"}, 1))}
    assert len(keys) == 8
    assert stream_cache.key_of(named(registry), 0, registry) == stream_cache.key_of(named(registry), 1, registry)


def test_custom_benchmarks_are_not_cached(registry):
    assert stream_cache.key_of(Resolved(name="package.module:function"), 0, registry) is None


def declaration(build, cached):
    return ("from clbench import BenchmarkInfo, hookimpl\n\n@hookimpl\ndef clbench_benchmarks():\n"
            f"    return [BenchmarkInfo('of-a-plugin', {build!r}, '', cached={cached})]\n")


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """Return a function that installs a package with a benchmark, and returns its key."""
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path / "streams_of_mine"
    folder.mkdir()
    write_distribution(tmp_path, "streams", ["streams_of_mine"])

    def key(cached=True, helper="x = 1"):
        (folder / "__init__.py").write_text(declaration("streams_of_mine.made:build", cached))
        (folder / "helper.py").write_text(helper)
        sys.modules.pop("streams_of_mine", None)  # as a new process begins
        return stream_cache.key_of(Resolved(name="of-a-plugin"), 0, discover())

    yield key
    sys.modules.pop("streams_of_mine", None)


def test_a_plugins_stream_is_cached_where_it_says_so_and_for_one_state_of_its_package(plugin):
    assert plugin(cached=False) is None
    keys = [plugin(), plugin(helper="x = 22"), plugin(), plugin(helper="x = 23")]
    assert keys[0] == keys[2] and len(set(keys)) == 3 and None not in keys


def test_a_plugin_that_is_a_file_finds_its_stream_wherever_the_file_lies(tmp_path):
    keys = []
    for place, text in (("a", ""), ("b", "# A comment is no code.\n"), ("c", "x = 1\n")):
        file = tmp_path / place / "a_files_stream.py"
        file.parent.mkdir()
        file.write_text(text + declaration("a_files_stream:build", True))
        keys.append(stream_cache.key_of(Resolved(name="of-a-plugin"), 0, discover(files=[file])))
        del sys.modules["a_files_stream"]
    assert keys[0] == keys[1] != keys[2] and None not in keys


@pytest.mark.parametrize("damage", [
    lambda data: data[:-7],
    lambda data: b"",
    lambda data: b"\xff" * len(data),
    lambda data: data[:-5] + bytes([data[-5] ^ 1]) + data[-4:],
    lambda data: data.replace(b'clbench', b'another'),
])
def test_a_damaged_file_is_built_again_and_said(registry, tmp_path, damage):
    load(registry, tmp_path)
    (file,) = (tmp_path / "streams").glob("*.safetensors")
    file.write_bytes(damage(file.read_bytes()))
    mended = load(registry, tmp_path)
    assert mended.digest == raw().digest
    assert len(mended.notes) == 1 and f"the cached stream {file} was built again" in mended.notes[0]
    assert load(registry, tmp_path, never).notes == ()


def test_the_key_of_an_own_benchmark_depends_on_all_modules_that_define_its_stream(registry, monkeypatch):
    read = []
    monkeypatch.setattr(stream_cache.identity, "hash_running", lambda *names: read.extend(names) or "code")
    key = stream_cache.key_of(named(registry, name="split-mnist"), 0, registry)
    assert key and {"clbench.data", "clbench.core.seeds", "clbench.core.tokens", "clbench.models.scoring"} < {*read}
    monkeypatch.undo()
    assert all(stream_cache.identity._files(name) for name in stream_cache.OWN_CODE)


def test_data_files_that_change_make_the_stream_again(registry, tmp_path):
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    file = folder / "train-labels-idx1-ubyte"
    file.write_bytes(b"one")
    load(registry, tmp_path, name="split-mnist")
    load(registry, tmp_path, never, name="split-mnist")
    file.write_bytes(b"three")
    other = raw(n=10)
    assert load(registry, tmp_path, lambda: other, name="split-mnist").digest == other.digest
    file.unlink()
    assert load(registry, tmp_path, never, name="split-mnist").digest == other.digest


def test_built_in_benchmarks_name_the_files_that_they_read(registry, tmp_path):
    named = {file for info in registry.benchmarks.values() if isinstance(info.files, tuple) for file in info.files}
    assert {tmp_path / file for file in named} == {
        *(folder(name, tmp_path) / file for name in ("MNIST", "FashionMNIST") for file in MNIST_FILES),
        *(cifar_file(name, tmp_path) for name in ("CIFAR10", "CIFAR100"))}
    assert [name for name, info in sorted(registry.benchmarks.items()) if not info.files] == ["split-mnist-5k"]


def test_a_folder_that_cannot_be_written_is_done_without_and_said(registry, tmp_path):
    (tmp_path / "streams").write_text("a file where the folder should be")
    stream = load(registry, tmp_path)
    assert stream.digest == raw().digest and "could not be cached" in stream.notes[0]


def test_a_failing_write_leaves_nothing_behind(registry, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    stream = load(registry, tmp_path)
    assert "No space left on device" in stream.notes[0] and not list((tmp_path / "streams").glob("*"))


def test_what_a_killed_process_left_half_written_is_removed_when_it_is_old(registry, tmp_path):
    folder = tmp_path / "streams"
    folder.mkdir()
    old, new = folder / ".0123.abc.tmp", folder / ".0123.def.tmp"
    for path in (old, new):
        path.write_bytes(b"half a stream")
    os.utime(old, (time.time() - 7200,) * 2)
    load(registry, tmp_path)
    assert not old.exists() and new.exists()


def test_a_failing_build_leaves_nothing_behind(registry, tmp_path):
    def broken():
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        load(registry, tmp_path, broken)
    assert not list((tmp_path / "streams").glob("*"))


def test_two_at_once_build_once(registry, tmp_path):
    pytest.importorskip("fcntl", reason="no file locks here")
    built, found = [], []

    def slow():
        built.append(1)
        time.sleep(0.1)
        return raw()

    threads = [threading.Thread(target=lambda: found.append(load(registry, tmp_path, slow))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1 and {f.digest for f in found} == {raw().digest}


def test_a_file_in_use_can_be_replaced(registry, tmp_path):
    first = load(registry, tmp_path)
    (file,) = (tmp_path / "streams").glob("*.safetensors")
    stream_cache.write_stream(file, replace(first, train=first.test, test=first.train), {})
    assert torch.equal(first.train[0].x, raw().train[0].x)


@pytest.mark.slow
def test_a_cached_stream_needs_neither_avalanche_nor_torchvision(registry, tmp_path):
    load(registry, tmp_path)
    code = f"""
import pathlib, sys
from clbench.data.stream import load_stream
from clbench.experiment.trial import Resolved
from clbench.core.registry import discover
benchmark = Resolved.model_validate_json({named(registry).model_dump_json()!r})
stream = load_stream(benchmark, "task", 0, pathlib.Path({str(tmp_path)!r}), discover())
print(stream.classes, [m for m in ("avalanche", "torchvision", "mlxtend") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout.strip(), done.stderr) == ("4 []", "")


def test_the_data_folder_is_the_named_one_or_in_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("CLBENCH_DATA", str(tmp_path / "here"))
    assert default_data_dir() == tmp_path / "here"
    monkeypatch.delenv("CLBENCH_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_data_dir() == tmp_path / "clbench"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_data_dir() == tmp_path / ".cache" / "clbench"
    monkeypatch.setenv("CLBENCH_DATA", "~nobody-of-this-name/data")
    assert default_data_dir() == Path("~nobody-of-this-name/data")


def test_a_user_without_a_home_folder_is_told_what_to_do(monkeypatch):
    for name in ("CLBENCH_DATA", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as for a number without an entry in passwd
    with pytest.raises(StoreError, match=r"no home folder for data sets: name a folder with --data or CLBENCH_DATA"):
        default_data_dir()
