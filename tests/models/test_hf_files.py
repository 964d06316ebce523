"""The files of models that clbench looks up in the cache of Hugging Face's hub, and downloads (extra `text`)."""

import json
import shutil
from fnmatch import fnmatch
from pathlib import Path

import pytest

from clbench.core.errors import DataError
from clbench.core.pretrained import hash_weights
from clbench.models import hf_files
from clbench.models.hf_candidates import base_folder
from clbench.models.hf_files import folder_of, local_folder, weights_of

pytestmark = pytest.mark.extra("text")
WHOLE = ["config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors", "training.log"]
PARTS = ["config.json", "tokenizer.json", "model-1.safetensors", "model-2.safetensors"]


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """Return a function that sets the files of the only repository; the calls are in the attribute `asked`."""
    published, cache = tmp_path / "published", tmp_path / "snapshots" / "c0ffee"
    asked = []

    def publish(names, cached=()):
        published.mkdir()
        for name in names:
            (published / name).write_text("{}")
        if "model-1.safetensors" in names:
            weights = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
            (published / "model.safetensors.index.json").write_text(json.dumps(weights))
        for name in cached:
            cache.mkdir(parents=True, exist_ok=True)
            shutil.copy(published / name, cache)

    def download(name, revision, allow_patterns, local_files_only):
        if not local_files_only:
            asked.append(revision)
            cache.mkdir(parents=True, exist_ok=True)
            for path in published.iterdir():
                if any(fnmatch(path.name, pattern) for pattern in allow_patterns):
                    shutil.copy(path, cache)
        elif not cache.is_dir():
            raise FileNotFoundError("not in the cache")
        return str(cache)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.setattr(hf_files, "hub_problem", lambda library: "")
    publish.asked = asked
    return publish


def names(folder: Path):
    return sorted(path.name for path in folder.iterdir())


def test_a_chat_template_in_its_own_file_is_downloaded(repository):
    repository(WHOLE)
    assert names(folder_of("a/b")) == sorted(set(WHOLE) - {"training.log"})


def test_a_model_on_this_machine_is_found_without_a_download(repository):
    repository(WHOLE)
    assert local_folder("a/b") is None and not repository.asked
    downloaded = folder_of("a/b")
    assert local_folder("a/b") == downloaded and len(repository.asked) == 1


def test_weights_that_the_cache_lacks_are_downloaded_from_the_cached_commit(repository):
    repository(WHOLE, cached=WHOLE[:2])
    assert names(folder_of("a/b")) == sorted(WHOLE[:2]) and not repository.asked
    assert weights_of("hf:a/b").is_file() and repository.asked == ["c0ffee"]
    assert base_folder("a/b").is_dir() and len(repository.asked) == 1


@pytest.mark.parametrize("cached", [PARTS[:2], [*PARTS[:3], "model.safetensors.index.json"]])
def test_all_files_of_divided_weights_are_downloaded(repository, cached):
    repository(PARTS, cached)
    assert set(PARTS) < set(names(base_folder("a/b"))) and repository.asked == ["c0ffee"]
    base_folder("a/b")
    assert len(repository.asked) == 1


def test_a_tokenizer_that_the_cache_lacks_is_downloaded_if_the_hub_has_one(repository, monkeypatch):
    repository(WHOLE, cached=[WHOLE[0], WHOLE[3]])
    monkeypatch.setattr(hf_files, "hub_problem", lambda library: "no route to host")
    assert names(weights_of("hf:a/b").parent) == ["config.json", "model.safetensors"] and not repository.asked
    monkeypatch.setattr(hf_files, "hub_problem", lambda library: "")
    folder_of("a/b")
    assert not repository.asked  # a process asks once
    hf_files._without_tokenizer.clear()
    assert "tokenizer.json" in names(folder_of("a/b")) and repository.asked == ["c0ffee"]


def test_the_weights_of_a_divided_model_are_its_index(repository):
    repository(PARTS, PARTS[:2])
    assert weights_of("hf:a/b").name == "model.safetensors.index.json" and repository.asked == ["c0ffee"]


@pytest.mark.parametrize(("index", "words"), [
    ('{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}',
     r"1 of 2 shards are missing: model-2\.safetensors$"),
    ('{"weight_map": {"a": "../model-1.safetensors"}}', "is not a name of a file in the same folder"),
    ('{"weight_map": {}}', "cannot be read as an index of shards"),
    ('{"weight_map": {"a": 1}}', "cannot be read as an index of shards"),
    ('{"metadata": {}}', "cannot be read as an index of shards"),
    ("[", "cannot be read as an index of shards"),
])
def test_an_index_of_shards_that_are_not_there_is_an_error(tmp_path, index, words):
    (tmp_path / "model-1.safetensors").write_bytes(b"")
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(index)
    with pytest.raises(DataError, match=words):
        hash_weights(path)


def test_missing_weights_are_an_error_without_a_connection(repository, monkeypatch):
    repository(WHOLE, cached=WHOLE[:2])
    monkeypatch.setattr(hf_files, "hub_problem", lambda library: "no route to host")
    with pytest.raises(DataError, match=r"its weights could not be downloaded .*\(no route to host\)"):
        base_folder("a/b")


def test_a_repository_without_a_configuration_is_an_error_that_says_so(repository):
    repository(["model.safetensors"])
    with pytest.raises(DataError, match=r"it could not be downloaded .*\(the repository has no config\.json\)"):
        folder_of("a/b")
