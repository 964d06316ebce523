"""`clbench data`: what is needed, what is there, and downloads from a server of this machine."""

import functools
import hashlib
import http.server
import io
import json
import shutil
import tarfile
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import named_trees

from clbench import cli
from clbench.core.data_sets import Download, Needed
from clbench.core.errors import DataError, StoreError
from clbench.core.files import lock
from clbench.core.registry import discover
from clbench.data import fetch
from clbench.data.named import by_class
from clbench.data.named.by_class import ImageNetAOptions, ImageNetROptions


@pytest.fixture(autouse=True)
def without_counts(monkeypatch):
    named_trees.without_counts(monkeypatch)


def shown(capsys, *args):
    code = cli.call(["data", *map(str, args)])
    output = capsys.readouterr()
    return code, output.out, output.err


def test_every_benchmark_with_data_has_a_line(tmp_path, capsys):
    code, out, _ = shown(capsys, "--data", tmp_path)
    rows = {line.split()[0]: line for line in out.splitlines() if line and not line.startswith("The data folder")}
    assert code == 0
    assert {*rows} - {"benchmark"} == {name for name, info in discover().benchmarks.items() if info.data is not None}
    assert rows["core50"].split() == ["core50", "CORe50", "CC", "BY", "4.0", "by", "hand", "missing"]
    assert "not known" in rows["split-cub200"] and "clbench data get" in rows["split-cub200"]
    assert "by clbench run" in rows["split-mnist"]
    assert f"The data folder is {tmp_path}." in out


def test_every_benchmark_with_files_says_where_they_come_from():
    for name, info in discover().benchmarks.items():
        assert bool(info.files) == (info.data is not None), name


def test_a_benchmark_lists_what_is_missing_wrong_and_found(tmp_path, capsys):
    code, out, _ = shown(capsys, "split-imagenet-r", "--data", tmp_path)
    assert code == 1
    lines = out.splitlines()
    assert lines[:2] == ["split-imagenet-r: ImageNet-R, missing", "  license: MIT"]
    assert f"  folder of the data set: {tmp_path / 'imagenet-r'}" in lines
    assert "  missing  imagenet-r_test.yaml" in lines
    assert "    https://people.eecs.berkeley.edu/~hendrycks/imagenet-r.tar (2,191 MB)" in lines
    assert "split=pilot" in out
    root = named_trees.raw_imagenet(tmp_path / "imagenet-r")
    (root / "imagenet-r_test.yaml").write_text("data: []")
    digest = hashlib.sha256(b"data: []").hexdigest()
    code, out, _ = shown(capsys, "split-imagenet-r", "--data", tmp_path)
    assert code == 1 and out.startswith("split-imagenet-r: ImageNet-R, wrong")
    assert "  found    the folder itself" in out
    assert f"  wrong    imagenet-r_test.yaml: its SHA-256 is {digest} and should be {by_class.CODA_LISTS[1][1]}" in out
    code, out, _ = shown(capsys, "split-imagenet-r:split=zheng", "--data", tmp_path)
    assert code == 0 and "missing" not in out
    code, out, _ = shown(capsys, "split-imagenet-r:split=pilot", "--data", tmp_path)
    assert code == 1 and "MD5 730aa3fb9c7d2ec0b6381c6b23040681" in out


def test_json_has_the_same(tmp_path, capsys):
    code, out, _ = shown(capsys, "core50:protocol=nc:run=2", "--data", tmp_path, "--json")
    thing, = json.loads(out)["data"]
    assert code == 1 and thing["license"] == "CC BY 4.0" and thing["status"] == "missing"
    assert [item["path"] for item in thing["needed"]] == [
        "core50_128x128", *(f"batches_filelists/NC_inc/run2/train_batch_0{n}_filelist.txt" for n in range(9)),
        "batches_filelists/NC_inc/run2/test_filelist.txt"]


@pytest.mark.parametrize(("args", "problem"), [
    (["split-imagenet"], "no benchmark with data 'split-imagenet'; did you mean 'split-imagenet-r'"),
    (["images:photos"], "benchmark 'images:photos' reads your own data, which clbench does not download"),
    (["module:function"], "no benchmark with data 'module:function'"),
    (["get", "split-cifar10"], "clbench data get is not needed for split-cifar10: clbench run downloads its files"),
    (["split-mnist-5k"], "benchmark 'split-mnist-5k' needs no data, or reads your own"),
    (["core50:protocol=nic"], "core50.protocol: should be 'ni' or 'nc', got 'nic'"),
    (["get", "domainnet"], "clbench cannot download domainnet"),
    (["get", "split-cub200:split=pilot"], "clbench cannot download split-cub200:split=pilot"),
    (["get", "split-cub200:path=x"], "leave path out, or name the folder by --data")])
def test_mistakes_are_one_line(tmp_path, capsys, args, problem):
    code, _, err = shown(capsys, *args, "--data", tmp_path)
    assert code == 2 and problem in err


class Server(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, parts of files too, and remembers which bytes were asked for."""

    ranges: list

    def do_GET(self):
        wanted = self.headers.get("Range")
        self.ranges.append(wanted)
        if wanted is None:
            return super().do_GET()
        begin = int(wanted.removeprefix("bytes=").rstrip("-"))
        content = Path(self.translate_path(self.path)).read_bytes()[begin:]
        self.send_response(206)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        """Print nothing."""


@pytest.fixture
def server(tmp_path):
    """Serve the folder `served`; return its address and the ranges that were asked for."""
    (tmp_path / "served").mkdir()
    handler = type("Handler", (Server,), {"ranges": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(
            handler, directory=tmp_path / "served")) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}/", handler.ranges
        running.shutdown()
        thread.join()


def archive(path, names):
    """Write a tar archive with these members."""
    with tarfile.open(path, "w") as tar:
        for name in names:
            content = named_trees.png(1)
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_get_downloads_checks_and_unpacks(tmp_path, server, capsys, monkeypatch):
    address, ranges = server
    digest = archive(tmp_path / "served" / "imagenet-a.tar", [
        *(f"imagenet-a/{wnid}/{letter}.jpg" for wnid in named_trees.WNIDS for letter in "abcde"),
        "imagenet-a/README.txt", "attributes.txt"])
    data = replace(ImageNetAOptions.DATA, downloads=(Download(address + "imagenet-a.tar", 0, digest),))
    monkeypatch.setattr(ImageNetAOptions, "DATA", data)
    folder = tmp_path / "data"
    code, out, _ = shown(capsys, "get", "split-imagenet-a", "--data", folder)
    assert code == 0 and out.startswith("split-imagenet-a: ImageNet-A, found")
    assert sorted(path.name for path in folder.iterdir()) == ["imagenet-a"]  # no archive, nothing next to the folder
    assert len(list((folder / "imagenet-a").glob("n*/a.jpg"))) == 200
    assert shown(capsys, "get", "split-imagenet-a", "--data", folder)[0] == 0
    assert ranges == [None]  # nothing was downloaded again


def test_get_fetches_only_what_is_missing(tmp_path, server, capsys, monkeypatch):
    address, ranges = server
    root = named_trees.raw_imagenet(tmp_path / "imagenet-r")
    named_trees.coda_lists(root)
    for path in sorted(root.glob("*.yaml")):
        path.rename(tmp_path / "served" / path.name)
    content = (tmp_path / "served" / "imagenet-r_train.yaml").read_text()
    lists = [(path.name, hashlib.sha256(path.read_bytes()).hexdigest())
             for path in sorted((tmp_path / "served").iterdir(), reverse=True)]
    monkeypatch.setattr(by_class, "CODA_LISTS", lists)
    data = replace(ImageNetROptions.DATA, downloads=(
        Download(address + "imagenet-r.tar", 0, "0"), *(Download(address + name, 0, digest) for name, digest in lists)))
    monkeypatch.setattr(ImageNetROptions, "DATA", data)
    assert shown(capsys, "get", "split-imagenet-r", "--data", tmp_path)[0] == 0
    assert (root / "imagenet-r_train.yaml").read_text() == content and len(ranges) == 2


def test_a_partial_download_is_continued(tmp_path, server):
    address, ranges = server
    content = bytes(range(256)) * 100
    (tmp_path / "served" / "list.txt").write_bytes(content)
    download = Download(address + "list.txt", len(content), hashlib.sha256(content).hexdigest())
    (tmp_path / "imagenet-a").mkdir()
    (tmp_path / "imagenet-a" / "list.txt.part").write_bytes(content[:1000])
    steps = []
    fetch.fetch(download, ImageNetAOptions.DATA, tmp_path, lambda done, total: steps.append((done, total)))
    assert ranges == ["bytes=1000-"] and steps[-1] == (len(content), len(content))
    assert (tmp_path / "imagenet-a" / "list.txt").read_bytes() == content
    assert not (tmp_path / "imagenet-a" / "list.txt.part").exists()


class Cut(io.BytesIO):
    """An answer that ends before its length."""

    status, headers = 200, {"Content-Length": "1000"}


def test_a_cut_connection_leaves_what_came_for_the_next_attempt(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch.urllib.request, "urlopen", lambda *_, **__: Cut(b"a" * 400))
    with pytest.raises(DataError, match=r"the connection ended after 400 of 1,000 bytes\); clbench continues"):
        fetch.fetch(Download("http://nowhere/list.txt", 1000, "00"), ImageNetAOptions.DATA, tmp_path, lambda *_: None)
    assert (tmp_path / "imagenet-a" / "list.txt.part").read_bytes() == b"a" * 400


def test_showing_a_benchmark_looks_for_every_photo(tmp_path, capsys):
    root = named_trees.cub(tmp_path / "CUB_200_2011")
    assert shown(capsys, "split-cub200", "--data", tmp_path)[0] == 0
    next((root / "images" / "001.Bird_1").iterdir()).unlink()
    code, out, _ = shown(capsys, "split-cub200", "--data", tmp_path)
    assert code == 1 and out.startswith("split-cub200: CUB-200-2011, wrong")
    assert "photos that images.txt lists are not there" in " ".join(out.split())


def test_other_content_is_removed_and_named(tmp_path, server):
    address, _ = server
    (tmp_path / "served" / "list.txt").write_bytes(b"other")
    with pytest.raises(DataError, match=f"has the SHA-256 {hashlib.sha256(b'other').hexdigest()} and should have 00"):
        fetch.fetch(Download(address + "list.txt", 0, "00"), ImageNetAOptions.DATA, tmp_path, lambda *_: None)
    assert not list(tmp_path.glob("imagenet-a/*"))
    with pytest.raises(DataError, match=r"could not be downloaded to .* \(the server answers 404"):
        fetch.fetch(Download(address + "none.txt", 0, "00"), ImageNetAOptions.DATA, tmp_path, lambda *_: None)
    with pytest.raises(DataError, match=r"could not be downloaded to .*refused"):
        fetch.fetch(Download("http://127.0.0.1:9/none.txt", 0, "00"), ImageNetAOptions.DATA, tmp_path, lambda *_: None)


def test_a_data_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "imagenet-a").touch()
    with pytest.raises(StoreError, match=r"cannot write to the folder .*imagenet-a: File exists; choose another data"):
        fetch.fetch(Download("http://nowhere/list.txt", 0, "00"), ImageNetAOptions.DATA, tmp_path, lambda *_: None)


def test_two_downloads_of_one_file_do_not_disturb_each_other(tmp_path, server):
    address, _ = server
    (tmp_path / "served" / "list.txt").write_bytes(b"other")
    download = Download(address + "list.txt", 0, "00")
    held = lock(tmp_path / "imagenet-a" / "list.txt.lock")
    with pytest.raises(DataError, match=r"another process is downloading .*list\.txt"):
        fetch.fetch(download, ImageNetAOptions.DATA, tmp_path, lambda *_: None)
    held.release()
    with pytest.raises(DataError, match="has the SHA-256"):
        fetch.fetch(download, ImageNetAOptions.DATA, tmp_path, lambda *_: None)


def test_archives_cannot_write_elsewhere(tmp_path):
    archive(tmp_path / "bad.tar", ["imagenet-a/../../outside.txt"])
    (tmp_path / "into").mkdir()
    with pytest.raises(DataError, match="cannot be unpacked"):
        fetch.unpack(tmp_path / "bad.tar", "imagenet-a", tmp_path / "into")
    assert not (tmp_path / "outside.txt").exists() and not (tmp_path.parent / "outside.txt").exists()
    archive(tmp_path / "other.tar", ["something/a.txt"])
    with pytest.raises(DataError, match="has no folder imagenet-a"):
        fetch.unpack(tmp_path / "other.tar", "imagenet-a", tmp_path / "into")
    (tmp_path / "no.tar").write_bytes(b"no archive")
    with pytest.raises(DataError, match="cannot be unpacked"):
        fetch.unpack(tmp_path / "no.tar", "imagenet-a", tmp_path / "into")


def test_an_archive_that_was_not_unpacked_to_its_end_is_pending(tmp_path):
    download, needed = Download("http://x/imagenet-a.tar", 0, "00"), (Needed("list.txt", "a list"),)
    (tmp_path / "imagenet-a").mkdir()
    (tmp_path / "imagenet-a" / "list.txt").write_text("")
    assert fetch.find_pending([download], needed, tmp_path / "imagenet-a", tmp_path) == []
    (tmp_path / "imagenet-a.tar").write_text("")
    assert fetch.find_pending([download], needed, tmp_path / "imagenet-a", tmp_path) == [download]


def test_files_that_no_download_has_do_not_make_an_archive_pending(tmp_path, capsys):
    named_trees.raw_imagenet(tmp_path / "imagenet-r")
    options = ImageNetROptions(split="l2p")
    assert fetch.find_pending(options.downloads(), options.needed(), tmp_path / "imagenet-r", tmp_path) == []
    with pytest.raises(SystemExit, match="1"):
        cli.main(["data", "split-imagenet-r:split=l2p", "--data", str(tmp_path)])
    shown = capsys.readouterr().out
    assert "train_list.txt" in shown and "clbench data get split-imagenet-r:split=l2p" not in shown.replace("\n", " ")


def test_get_says_what_to_remove_if_the_data_set_is_not_complete(tmp_path, capsys):
    birds, photos = named_trees.cub(tmp_path / "CUB_200_2011"), named_trees.raw_imagenet(tmp_path / "imagenet-a")
    next((birds / "images" / "001.Bird_1").iterdir()).unlink()
    shutil.rmtree(photos / named_trees.WNIDS[0])
    for name, root in (("split-cub200", birds), ("split-imagenet-a", photos)):
        code, out, _ = shown(capsys, "get", name, "--data", tmp_path)
        assert code == 1 and f"  remove {root} or move it away; then clbench data get {name} downloads:" in out


def test_advice_keeps_the_options(tmp_path, capsys):
    _, out, _ = shown(capsys, "split-imagenet-r:split=inflora:tasks=5", "--data", tmp_path)
    assert "  clbench data get split-imagenet-r:split=inflora downloads:" in out and "yaml" not in out
    assert "clbench data get split-imagenet-r:split=inflora downloads and unpacks it" in " ".join(out.split()).replace(
        "Clbench", "clbench")
    _, out, _ = shown(capsys, "split-imagenet-r:split=inflora:path=mine", "--data", tmp_path)
    assert "  without path, clbench data get split-imagenet-r:split=inflora downloads to the data folder:" in out
    _, out, _ = shown(capsys, "core50:run=3", "--data", tmp_path)
    assert "to check one: clbench data core50:protocol=nc:run=3" in " ".join(out.split())


def test_wrong_lists_are_no_tracebacks(tmp_path, capsys):
    labels = named_trees.cub(tmp_path / "CUB_200_2011") / "image_class_labels.txt"
    labels.write_text(labels.read_text().replace("1 1\n", "1 x\n", 1))
    code, out, _ = shown(capsys, "split-cub200", "--data", tmp_path)
    assert code == 1 and "line '1 x' of" in " ".join(out.split())
