"""The cache of streams against files that change: a changed content is never served, an equal one not read twice."""

import json
import os
import subprocess
import sys
import threading

import pytest
from helpers.streams import raw

from clbench.core.errors import DataError
from clbench.core.hookspecs import BenchmarkInfo, hookimpl
from clbench.core.registry import discover
from clbench.data import contents, stream_cache
from clbench.experiment.trial import Resolved

AN_HOUR_AGO = 3600


def listed(name, options, data_dir):
    """List the files of `photos:DIR` as they are named there."""
    folder = name.partition(":")[2]
    if not os.path.isdir(folder):
        raise DataError(f"no folder {folder}")
    return sorted(os.path.join(at, file) for at, _, files in os.walk(folder) for file in files)


class Plugin:
    """A plugin whose benchmarks read files of the user's own."""

    @hookimpl
    def clbench_benchmarks(self):
        return [BenchmarkInfo("photos:*", "clbench.data.avalanche.benchmarks:custom", "", cached=True, any_name=True,
                              files=listed),
                BenchmarkInfo("named", "clbench.data.avalanche.benchmarks:custom", "", cached=True,
                              files=f"{__name__}:fixed"),
                BenchmarkInfo("broken", "clbench.data.avalanche.benchmarks:custom", "", cached=True,
                              files=lambda name, options, data_dir: 1 / 0)]


def fixed(name, options, data_dir):
    return [data_dir / "one.bin"]


@pytest.fixture(scope="module")
def registry():
    found = discover(extra=[Plugin()])
    for name in ("photos:*", "named", "broken"):  # what is registered in a process only has no version
        found.origins["benchmark", name] = found.origins["benchmark", "split-mnist"]
    return found


class Folder:
    """A folder of files, and a cache of the stream that is made of them."""

    def __init__(self, registry, folder, data_dir):
        self.registry, self.folder, self.data_dir = registry, folder, data_dir
        self.streams = data_dir / "streams"

    def write(self, name, content):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def settle(self):
        """Let all files have been written an hour ago, as the index sees it: their status was changed now."""
        for path in self.folder.rglob("*"):
            if path.is_file():
                then = path.stat().st_mtime - AN_HOUR_AGO
                os.utime(path, (then, then))

    def load(self, verify=False, name=None):
        """Return how often the stream was built, and its notes."""
        built = []

        def build():
            built.append(1)
            return raw(notes=("as it was read",))

        found = stream_cache.read_or_build(Resolved(name=name or f"photos:{self.folder}"), 0, self.data_dir,
                                           self.registry, build, verify)
        return len(built), list(found.notes[1:])


@pytest.fixture
def photos(registry, tmp_path, monkeypatch):
    monkeypatch.setattr(contents, "SETTLED_NS", 0)  # no test waits for two seconds
    made = Folder(registry, tmp_path / "photos", tmp_path / "data")
    for name in ("cat/1.png", "cat/2.png", "dog/1.png"):
        made.write(name, name.encode())
    made.settle()
    assert made.load() == (1, []) and made.load() == (0, [])
    return made


@pytest.fixture
def read(monkeypatch):
    """Return the files that are read, in order."""
    paths, whole = [], contents.read_hash
    monkeypatch.setattr(contents, "read_hash", lambda path: paths.append(os.path.basename(path)) or whole(path))
    return paths


def edit(photos):
    photos.write("cat/2.png", b"another cat")


def same_size_and_time(photos):
    path = photos.folder / "cat" / "2.png"
    status = path.stat()
    path.write_bytes(b"x" * status.st_size)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def add(photos):
    photos.write("dog/2.png", b"new")


def remove(photos):
    (photos.folder / "cat" / "1.png").unlink()


def rename(photos):
    (photos.folder / "cat" / "1.png").rename(photos.folder / "cat" / "9.png")


def rename_a_class(photos):
    (photos.folder / "dog").rename(photos.folder / "wolf")


def swap(photos):
    """Exchange two files: the same contents under the same names, but each of the other class."""
    one, other = (photos.folder / name / "1.png" for name in ("cat", "dog"))
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


@pytest.mark.parametrize("change", [edit, same_size_and_time, add, remove, rename, rename_a_class, swap])
def test_what_has_changed_is_never_served(photos, change):
    change(photos)
    count, notes = photos.load()
    assert count == 1 and photos.load()[0] == 0
    assert any("the data files it was made from have changed" in note for note in notes)
    assert len(list(photos.streams.glob("*.safetensors"))) == 1  # in place of the old one


def test_a_file_that_was_touched_is_read_again_alone_and_keeps_the_stream(photos, read):
    os.utime(photos.folder / "cat" / "2.png")
    assert photos.load() == (0, []) and read == ["2.png"]
    assert photos.load() == (0, []) and read == ["2.png"]


def test_unchanged_files_are_not_read_and_their_index_is_not_written(photos, read):
    (index,) = photos.streams.glob("files-*.json")
    before = index.stat()
    assert photos.load() == (0, []) and read == []
    assert index.stat().st_mtime_ns == before.st_mtime_ns and index.stat().st_ino == before.st_ino


def hide(photos, path):
    """Let the index hold the size and times that a file has now, with the hash that it had."""
    (index,) = photos.streams.glob("files-*.json")
    known = json.loads(index.read_text())
    known["files"][str(path)][:3] = contents._state(str(path))
    index.write_text(json.dumps(known))


def test_a_content_that_changed_behind_all_times_is_found_by_verifying(photos, read):
    path = photos.folder / "cat" / "2.png"
    same_size_and_time(photos)
    hide(photos, path)
    assert photos.load() == (0, [])  # what no size and no time tells
    read.clear()
    count, notes = photos.load(verify=True)
    assert count == 1 and read[:3] == ["1.png", "2.png", "1.png"]
    assert any(f"{path}: other content than before, though size and times are the same" in note for note in notes)
    assert photos.load(verify=True) == (0, [])


def test_a_file_that_changed_just_before_it_was_read_is_read_again(photos, read, monkeypatch):
    monkeypatch.setattr(contents, "SETTLED_NS", 2 * 10**9)
    edit(photos)
    photos.load()
    read.clear()
    assert photos.load()[0] == 0 and read == ["2.png"]  # it might have been written to once more in the same instant


@pytest.mark.parametrize("damage", [b"", b"[]", b'{"format": 1, "files": {"a": 3}}', b'{"format": 0, "files": {}}',
                                    b"\xff"])
def test_a_damaged_index_costs_reading_only(photos, read, damage):
    (index,) = photos.streams.glob("files-*.json")
    index.write_bytes(damage)
    assert photos.load() == (0, []) and len(read) == 3


def test_folders_of_one_name_in_two_places_are_never_confused(registry, tmp_path, monkeypatch):
    keys = set()
    for place, content in (("a", b"1"), ("b", b"2"), ("c", b"1")):
        photos = Folder(registry, tmp_path / place / "photos", tmp_path / "data")
        photos.write("cat/1.png", content)
        monkeypatch.chdir(tmp_path / place)
        assert photos.load(name="photos:photos") == (1, [])
        keys.add(frozenset(path.name for path in photos.streams.glob("*.safetensors")))
    assert len(keys) == 3
    for place in "abc":
        monkeypatch.chdir(tmp_path / place)
        assert photos.load(name="photos:photos") == (0, [])


def test_files_that_change_while_they_are_read_give_no_cached_stream(registry, tmp_path):
    photos = Folder(registry, tmp_path / "photos", tmp_path / "data")
    photos.write("cat/1.png", b"half")

    def build():
        photos.write("cat/1.png", b"half and the rest")
        return raw()

    found = stream_cache.read_or_build(Resolved(name=f"photos:{photos.folder}"), 0, photos.data_dir, registry, build)
    assert "changed while the stream was made" in found.notes[0]
    assert not list(photos.streams.glob("*.safetensors")) and photos.load()[0] == 1


def test_a_data_folder_that_cannot_be_written_is_told(registry, tmp_path):
    photos = Folder(registry, tmp_path / "photos", tmp_path / "data")
    photos.write("cat/1.png", b"1")
    photos.data_dir.mkdir()
    photos.streams.write_text("a file where the folder should be")
    for _ in range(2):
        count, notes = photos.load()
        assert count == 1 and "the stream could not be cached" in notes[0] and len(notes) == 2
        assert "hashes of data files could not be kept" in notes[1]


def test_a_function_is_named_or_given_and_its_errors_are_one_line(registry, tmp_path):
    photos = Folder(registry, tmp_path / "absent", tmp_path / "data")
    with pytest.raises(DataError, match="no folder"):
        photos.load()
    with pytest.raises(DataError, match="benchmark 'broken': its files cannot be listed"):
        photos.load(name="broken")
    with pytest.raises(DataError, match=r"one\.bin cannot be read: No such file"):
        photos.load(name="named")
    photos.data_dir.mkdir()
    (photos.data_dir / "one.bin").write_bytes(b"1")
    assert photos.load(name="named")[0] == 1 and photos.load(name="named")[0] == 0


def test_two_at_once_build_once_and_leave_a_whole_index(registry, tmp_path):
    pytest.importorskip("fcntl", reason="no file locks here")
    photos = Folder(registry, tmp_path / "photos", tmp_path / "data")
    for i in range(20):
        photos.write(f"cat/{i}.png", b"%d" % i)
    found = []
    threads = [threading.Thread(target=lambda: found.append(photos.load())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(count for count, _ in found) == 1 and not any(notes for _, notes in found)
    (index,) = photos.streams.glob("files-*.json")
    assert len(json.loads(index.read_text())["files"]) == 20


def test_listing_and_hashing_import_no_torch():
    code = "import clbench.data.contents, sys; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_two_lists_of_files_of_a_folder_keep_each_others_hashes(tmp_path, monkeypatch):
    paths = []
    for name in "abc":
        path = tmp_path / name
        path.write_text(name)
        os.utime(path, (path.stat().st_atime - AN_HOUR_AGO, path.stat().st_mtime - AN_HOUR_AGO))
        paths.append(str(path))
    hashed = []
    monkeypatch.setattr(contents, "SETTLED_NS", -10**12)
    monkeypatch.setattr(contents, "read_hash", lambda path: hashed.append(path) or "0" * 64)
    for files in (paths[:2], paths[1:], paths[:2], paths[1:]):
        contents.contents_of(contents.DataFiles({path: path for path in files}), tmp_path / "index.json")
    assert hashed == paths
    os.remove(paths[0])
    contents.contents_of(contents.DataFiles({"d": paths[2]}), tmp_path / "index.json", verify=True)
