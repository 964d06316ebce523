"""The benchmarks that papers use, on small trees with their real layout, and on wrong ones."""

import hashlib
import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from helpers import named_trees
from helpers.named_trees import DOMAINS, WNIDS
from pydantic import ValidationError

import clbench
from clbench import cli
from clbench.core.errors import DataError, MissingDataError
from clbench.core.registry import discover
from clbench.data.named import by_class
from clbench.data.named.by_class import (
    CUBOptions,
    ImageNetAOptions,
    ImageNetROptions,
    OmniBenchmarkOptions,
    random_rows,
    stratified_rows,
)
from clbench.data.named.by_domain import CLEAR10Options, CORe50Options, DomainNetOptions
from clbench.data.stream import load_stream
from clbench.experiment.trial import Resolved

COUNTS = {(options, name): getattr(options, name) for options, name in (
    (ImageNetAOptions, "SAMPLES"), (ImageNetAOptions, "PILOT_SAMPLES"), (CUBOptions, "PILOT_SAMPLES"))}


@pytest.fixture(autouse=True)
def without_counts(monkeypatch):
    named_trees.without_counts(monkeypatch)


def test_a_rule_on_an_incomplete_data_set_would_give_another_split(trees, monkeypatch):
    monkeypatch.setattr(ImageNetROptions, "SAMPLES", (24_000, 6_000))
    for split in ("inflora", "zheng"):
        with pytest.raises(DataError, match=r"gives 800 training and 200 test photos, and published are 24,000 "
                                            r"training and 6,000 test photos; some are missing or do not belong there"):
            ImageNetROptions(split=split).find_files(trees)


@pytest.mark.parametrize(("benchmark", "split", "name", "counts"), [
    (ImageNetAOptions, "zheng", "SAMPLES", "6,000 training and 1,500"),
    (ImageNetAOptions, "pilot", "PILOT_SAMPLES", "5,981 training and 1,519"),
    (CUBOptions, "pilot", "PILOT_SAMPLES", "9,430 training and 2,358")])
def test_data_sets_must_have_all_photos_of_their_split(tmp_path, monkeypatch, benchmark, split, name, counts):
    monkeypatch.setattr(benchmark, name, COUNTS[benchmark, name])
    tree = named_trees.raw_imagenet(tmp_path / benchmark.DATA.folder)
    named_trees.pilot(tree, WNIDS)
    with pytest.raises(DataError, match=f"published are {counts} test photos"):
        benchmark(split=split).find_files(tmp_path)


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    """Return a data folder with one of each data set."""
    data = tmp_path_factory.mktemp("data")
    named_trees.raw_imagenet(data / "imagenet-r")
    named_trees.raw_imagenet(data / "imagenet-a")
    named_trees.cub(data / "CUB_200_2011")
    named_trees.pilot(data / "omnibenchmark", [str(number) for number in range(300)])
    named_trees.domainnet(data / "domainnet")
    named_trees.core50(data / "core50")
    named_trees.clear10(data / "clear10")
    return data


@pytest.fixture
def coda(trees, monkeypatch):
    """Add lists like CODA-Prompt's, declare their hashes, and return the order of their labels."""
    order = named_trees.coda_lists(trees / "imagenet-r")
    lists = [(name, hashlib.sha256((trees / "imagenet-r" / name).read_bytes()).hexdigest())
             for name, _ in by_class.CODA_LISTS]
    monkeypatch.setattr(by_class, "CODA_LISTS", lists)
    return order


def stream(name, data, scenario="class", **options):
    registry = discover()
    validated = registry.benchmark(name).options(**{"size": 8, **options})
    return load_stream(Resolved(name=name, options=validated.model_dump()), scenario, 0, data, registry)


def sizes(read):
    return [(len(task.classes), len(task.train), len(task.test)) for task in read.tasks]


def names(read):
    return [name for task in read.tasks for name in task.class_names]


def test_imagenet_r_by_codas_lists_has_their_order_of_labels(trees, coda):
    read = stream("split-imagenet-r", trees)
    assert sizes(read) == [(20, 60, 20)] * 10
    assert names(read) == coda
    shuffled = stream("split-imagenet-r", trees, class_order="python:1")
    # CODA's order for its seed 1, as its code makes it
    assert names(shuffled)[:8] == [coda[label] for label in (33, 146, 79, 19, 23, 131, 12, 187)]


@pytest.mark.parametrize(("split", "seed"), [("inflora", 40), ("dualprompt", 42)])
def test_random_splits_are_those_of_torch_over_the_order_of_imagefolder(trees, split, seed):
    from torchvision.datasets import ImageFolder

    files = ImageFolder(trees / "imagenet-r").imgs
    parts = torch.utils.data.random_split(range(1000), [800, 200], torch.Generator().manual_seed(seed))
    found = ImageNetROptions(split=split).find_files(trees)
    for photos, part in zip(found[:2], parts, strict=True):
        assert [str(file) for file in photos.files] == [files[row][0] for row in part]
        assert list(photos.labeled.labels) == [WNIDS[files[row][1]] for row in part]
    assert random_rows(1000, seed) == tuple(list(part) for part in parts)


@pytest.mark.parametrize(("count", "seed"), [(30_000, 40), (30_000, 42), (7, 3), (1, 0)])
def test_the_rule_of_random_splits_is_torchs(count, seed):
    train, test = random_rows(count, seed)
    assert train + test == torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    assert len(train) == int(0.8 * count)


def test_zhengs_split_is_stratified(trees):
    for options in (ImageNetROptions(split="zheng"), ImageNetAOptions()):
        found = options.find_files(trees)
        assert Counter(found.test.labeled.labels) == dict.fromkeys(WNIDS, 1)
        assert not {*found.train.files} & {*found.test.files} and len(found.train.files) == 800
    labels = np.repeat(np.arange(7), [5, 9, 13, 20, 31, 40, 77])
    train, test = stratified_rows(labels.tolist(), 42)
    assert sorted([*train, *test]) == list(range(195)) and len(test) == 39
    assert all(abs(np.sum(labels[test] == c) - np.sum(labels == c) / 5) < 1 for c in range(7))


def test_folders_of_pilot_are_sorted_as_text_and_ordered_by_numpys_seed(trees):
    read = stream("split-omnibenchmark", trees, class_order="numpy:1993")
    assert sizes(read) == [(30, 60, 30)] * 10
    as_text = sorted(str(number) for number in range(300))  # 10 before 9
    assert names(read)[:10] == [as_text[n] for n in (169, 221, 146, 296, 92, 229, 49, 70, 126, 77)]


@pytest.mark.parametrize("name", ["split-imagenet-r", "split-imagenet-a", "split-cub200"])
def test_pilots_folders_can_have_a_path_of_their_own(tmp_path, name):
    named_trees.pilot(tmp_path / "mine", WNIDS)
    read = stream(name, tmp_path, split="pilot", path="mine", class_order="numpy:1993")
    assert sizes(read) == [(20, 40, 20)] * 10
    assert names(read)[:10] == [WNIDS[n] for n in (168, 136, 51, 9, 183, 101, 171, 99, 42, 159)]


def test_l2ps_lists_are_read(tmp_path):
    named_trees.raw_imagenet(tmp_path / "imagenet-r", 2)
    for name, index in (("train_list.txt", 0), ("val_list.txt", 1)):
        (tmp_path / "imagenet-r" / name).write_text(
            "".join(f"{wnid}/art_{index}.jpg {label}\n" for label, wnid in enumerate(WNIDS)))
    found = ImageNetROptions(split="l2p").find_files(tmp_path)
    assert [file.name for file in found.test.files] == ["art_1.jpg"] * 200


def test_cub_has_its_official_split(trees):
    read = stream("split-cub200", trees, tasks=20)
    assert sizes(read) == [(10, 20, 10)] * 20
    assert names(read)[:2] == ["001.Bird_1", "002.Bird_2"]
    found = CUBOptions().find_files(trees)
    assert {file.name for file in found.test.files} == {"Bird_1.jpg"}


@pytest.mark.slow
def test_domainnet_has_domains_as_tasks_or_classes_of_all_domains(trees):
    read = stream("domainnet", trees, "domain")  # the lists of painting lack a class in training, another in the test
    assert sizes(read) == [(345, 345, 345)] * 2 + [(345, 344, 344)] + [(345, 345, 345)] * 3
    assert {str(file).split("/")[-3] for file in DomainNetOptions().find_files(trees).train.files} == {*DOMAINS}
    order = ["real", "quickdraw", "painting", "sketch", "infograph", "clipart"]
    read = stream("domainnet", trees, "domain", tasks_in_order=order)
    paths = [read.tasks[task].train.photos.table.path(int(read.tasks[task].train.photos.rows[0])) for task in range(6)]
    assert [path.split("/")[-3] for path in paths] == order
    read = stream("domainnet", trees, tasks=5)
    assert sizes(read) == [(69, 6 * 69, 6 * 69)] * 4 + [(69, 6 * 69 - 1, 6 * 69 - 1)]
    assert names(read) == [f"class_{label:03}" for label in range(345)]


def test_core50_ni_has_sessions_in_the_order_of_a_run_and_one_test(trees):
    found = CORe50Options().find_files(trees)
    assert found.train.labeled.task_names == ("s5", "s1", "s2", "s4", "s6", "s8", "s9", "s11")
    assert {file.parts[-3] for file in found.test.files} == {"s3", "s7", "s10"}
    read = stream("core50", trees, "domain")
    assert sizes(read) == [(50, 50, 150)] * 8
    assert read.tasks[0].class_names[:3] == ("o1", "o2", "o3")
    assert read.common_test and len({id(task.test) for task in read.tasks}) == 1
    read = stream("core50", trees, "domain", labels="categories", tasks_in_order="s1+s2+s4+s5+s6+s8+s9+s11")
    assert sizes(read) == [(10, 50, 150)] * 8
    assert read.tasks[0].class_names[:2] == ("plug adapters", "mobile phones")
    assert Counter(read.tasks[0].train.y.tolist()) == dict.fromkeys(range(10), 5)
    found = CORe50Options(labels="categories").find_files(trees).train
    category = {file.parts[-2]: name for file, name in zip(found.files, found.labeled.labels, strict=True)}
    assert [category[f"o{n}"] for n in (1, 5, 6, 46, 50)] == [
        "plug adapters", "plug adapters", "mobile phones", "remote controls", "remote controls"]


def test_core50_nc_has_new_objects_in_each_task(trees):
    read = stream("core50", trees, protocol="nc")
    assert read.common_test and sizes(read) == [(10, 80, 150), *[(5, 40, 150)] * 8]
    assert sorted(read.tasks[0].class_names, key=lambda name: int(name[1:])) == [f"o{n}" for n in range(41, 51)]
    assert sorted(read.tasks[8].class_names) == ["o1", "o2", "o3", "o4", "o5"]


def test_clear10_has_buckets_in_time_as_tasks(trees):
    read = stream("clear10", trees, "domain")
    assert sizes(read) == [(11, 22, 11)] * 10
    assert read.tasks[0].class_names[0] == "BACKGROUND"
    assert CLEAR10Options().find_files(trees).train.labeled.tasks[0] == "1"


def test_preprocessing_is_that_of_the_papers_unless_a_size_is_given():
    assert (ImageNetROptions().resize, ImageNetROptions().crop, ImageNetROptions().read) == (256, 224, "files")
    for options in (ImageNetROptions(), ImageNetROptions(size=32), ImageNetROptions(resize=256, crop=200),
                    ImageNetROptions(resize=300, crop=224), CORe50Options(protocol="nc", run=3)):
        assert type(options).stored(options.model_dump()) == options
    assert ImageNetROptions(size=32).crop is None
    with pytest.raises(ValidationError, match="resize and crop go together"):
        ImageNetROptions(crop=200)
    with pytest.raises(ValidationError, match="larger than resize"):
        ImageNetROptions(resize=200, crop=224)


@pytest.mark.parametrize(("options", "problem"), [
    ((DomainNetOptions, {"class_order": "numpy:1993"}), "as long as neither tasks nor task_sizes is given"),
    ((CORe50Options, {"tasks": 5}), "tasks are those of the lists; protocol=nc has tasks by class"),
    ((CORe50Options, {"protocol": "nc", "labels": "categories"}), "labels = categories goes with protocol = ni"),
    ((CORe50Options, {"run": 10}), "less than or equal to 9")])
def test_options_that_do_not_fit_are_refused(options, problem):
    with pytest.raises(ValidationError, match=problem):
        options[0](**options[1])


def test_missing_and_wrong_files_are_errors_that_say_what_to_do(tmp_path):
    end = "; clbench data split-imagenet-r shows everything that is needed"
    source = ("clbench data get split-imagenet-r downloads and unpacks it "
              "(https://people.eecs.berkeley.edu/~hendrycks/imagenet-r.tar)")
    what = "the 200 folders of classes of imagenet-r.tar, n01443537 and so on"
    root = tmp_path / "imagenet-r"
    options = ImageNetROptions()
    with pytest.raises(MissingDataError) as error:
        options.find_files(tmp_path)
    assert str(error.value) == f"benchmark 'split-imagenet-r' needs {what}, and {root} is not there. {source}{end}"
    named_trees.raw_imagenet(root, 1)
    shutil.rmtree(root / WNIDS[0])
    with pytest.raises(DataError) as error:
        options.find_files(tmp_path)
    assert str(error.value) == (f"benchmark 'split-imagenet-r': {what} in {root} is wrong: it has 199 folders of "
                                f"classes and should have 200. Remove {root} or move it away, and then get it again: "
                                f"{source}{end}")
    named_trees.raw_imagenet(root, 1)
    with pytest.raises(MissingDataError) as error:
        options.find_files(tmp_path)
    listed = ("clbench data get split-imagenet-r downloads it (dataloaders/splits of the repository "
              "GT-RIPL/CODA-Prompt)")
    assert str(error.value) == (f"benchmark 'split-imagenet-r' needs CODA-Prompt's list, and "
                                f"{root / 'imagenet-r_train.yaml'} is not there. {listed}{end}")
    (root / "imagenet-r_train.yaml").write_text("data: []\ntargets: []\n")
    digest = hashlib.sha256((root / "imagenet-r_train.yaml").read_bytes()).hexdigest()
    with pytest.raises(DataError) as error:
        options.find_files(tmp_path)
    assert str(error.value) == (
        f"benchmark 'split-imagenet-r': CODA-Prompt's list in {root / 'imagenet-r_train.yaml'} is wrong: its SHA-256 "
        f"is {digest} and should be {by_class.CODA_LISTS[0][1]}. {listed}{end}")


def test_lists_that_do_not_fit_their_photos_are_errors(tmp_path):
    cub = named_trees.cub(tmp_path / "CUB_200_2011")
    (cub / "images" / "007.Bird_7" / "Bird_0.jpg").unlink()
    with pytest.raises(DataError, match=r"1 of 400 photos that images.txt lists are not there; the first is .*007"):
        CUBOptions().find_files(tmp_path)
    (cub / "train_test_split.txt").write_text("1 1\n")
    with pytest.raises(DataError, match="do not number the same photos; unpack the archive again"):
        CUBOptions().find_files(tmp_path)
    core = named_trees.core50(tmp_path / "core50")
    shutil.rmtree(core / "core50_128x128" / "s5" / "o3")
    with pytest.raises(DataError, match="1 of 400 photos that the lists of run 0 name are not in"):
        CORe50Options().find_files(tmp_path)
    with pytest.raises(MissingDataError, match=r"needs a list of CORe50, and .*run1/train_batch_00_filelist"):
        CORe50Options(run=1).find_files(tmp_path)
    (core / "batches_filelists/NI_inc/run0/test_filelist.txt").write_text("photo.png 1\n")
    with pytest.raises(DataError, match=r"'photo.png' in the lists of run 0 is not sN/oN/FILE"):
        CORe50Options().find_files(tmp_path)
    for path in ("s5/o51/C_05_51_000.png", "s5/o0/C_05_00_000.png"):
        named_trees.write((core / "core50_128x128" / path).parent, [path.rpartition("/")[2]], 1)
        (core / "batches_filelists/NI_inc/run0/test_filelist.txt").write_text(f"{path} 50\n")
        for labels in ("categories", "objects"):
            with pytest.raises(DataError, match=rf"'{path}' in the lists of run 0 .* an object from o1 to o50"):
                CORe50Options(labels=labels).find_files(tmp_path)
    clear = named_trees.clear10(tmp_path / "clear10")
    for bucket in range(1, 11):
        shutil.rmtree(clear / "train" / "labeled_images" / str(bucket) / "bus")
    with pytest.raises(DataError, match="have 10 classes and should have 11; the data set is not complete"):
        CLEAR10Options().find_files(tmp_path)


def test_a_class_of_cub_must_be_a_number(tmp_path):
    root = named_trees.cub(tmp_path / "CUB_200_2011")
    labels = root / "image_class_labels.txt"
    labels.write_text(labels.read_text().replace("1 1\n", "1 x\n", 1))
    with pytest.raises(DataError, match=r"line '1 x' of .*image_class_labels.txt does not end in the number"):
        CUBOptions().find_files(tmp_path)


def test_domainnet_says_what_is_missing_and_wrong(tmp_path):
    with pytest.raises(MissingDataError, match=r"needs the 345 folders of classes of the domain clipart, and .*clipart "
                                               r"is not there\. Download http://csr\.bu\.edu/.*groundtruth/clipart\.zip"):
        DomainNetOptions().find_files(tmp_path)
    root = named_trees.domainnet(tmp_path / "domainnet")
    (root / "sketch_test.txt").rename(root / "sketch_test.old")
    with pytest.raises(MissingDataError, match=r"needs an official list, and .*sketch_test\.txt is not there\."):
        DomainNetOptions().find_files(tmp_path)
    lines = (root / "sketch_test.old").read_text()
    (root / "sketch_test.txt").write_text(lines.replace("sketch/class_000/", "sketch/class_000/other_"))
    with pytest.raises(MissingDataError, match=r"1 of 4138 photos .* are not in .*class_000/other_sketch_test\.jpg"):
        DomainNetOptions().find_files(tmp_path)
    (root / "sketch_test.txt").write_text(lines.replace("sketch/class_000/sketch_test.jpg 0\n", "a.jpg\n"))
    with pytest.raises(DataError, match=r"cannot read the list .*sketch_test\.txt: line 1 is 'a\.jpg', expected"):
        DomainNetOptions().find_files(tmp_path)
    (root / "sketch_test.txt").write_text(lines)
    shutil.rmtree(root / "real" / "class_000")
    with pytest.raises(DataError, match=r"domain real in .*real is wrong: it has 344 folders of classes and should "
                                        r"have 345\. Remove .*real or move it away, and then get it again: Download"):
        DomainNetOptions().find_files(tmp_path)


def test_omnibenchmark_says_what_is_missing_and_wrong(tmp_path):
    names = [str(number) for number in range(300)]
    root = named_trees.pilot(tmp_path / "omnibenchmark", names)
    shutil.rmtree(root / "test")
    with pytest.raises(MissingDataError, match=r"needs PILOT's folder test with 300 folders of classes, and .*test is "
                                               r"not there\. The README of .* omnibenchmark\.zip \(MD5 f1c30808a707f"):
        OmniBenchmarkOptions().find_files(tmp_path)
    named_trees.pilot(root, names[:-1])
    with pytest.raises(DataError, match=r"folder test .* is wrong: it has 299 folders of classes and should have 300"):
        OmniBenchmarkOptions().find_files(tmp_path)
    (root / "test" / "299").mkdir()  # a folder without photos
    named_trees.pilot(root, names)
    for photo in (root / "train" / "299").iterdir():
        photo.unlink()
    with pytest.raises(DataError, match=r"have 299 classes and should have 300; the data set is not complete"):
        OmniBenchmarkOptions().find_files(tmp_path)


def test_test_photos_need_training_photos_of_their_class(tmp_path):
    root = named_trees.pilot(tmp_path / "imagenet-r", WNIDS)
    (root / "test" / WNIDS[3]).rename(root / "test" / "n99999999")
    with pytest.raises(DataError, match=r"classes with test photos and without training photos: n99999999"):
        ImageNetROptions(split="pilot").find_files(tmp_path)
    clear = named_trees.clear10(tmp_path / "clear10")
    shutil.rmtree(clear / "train" / "labeled_images" / "4" / "bus")  # other buckets train this class
    with pytest.raises(DataError, match=r"classes with test photos and without training photos: bus of task 4"):
        CLEAR10Options().find_files(tmp_path)
    (clear / "test" / "labeled_images" / "4").rename(clear / "test" / "labeled_images" / "14")
    with pytest.raises(DataError, match=r"tasks with only training or only test photos: 4, 14"):
        CLEAR10Options().find_files(tmp_path)


@pytest.mark.parametrize("name", [
    "split-imagenet-r:split=inflora", "split-cub200:tasks=20", "domainnet", "core50", "clear10",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("split-imagenet-a", "split-omnibenchmark",
                                                              "domainnet:tasks=5", "core50:protocol=nc"))])
def test_a_dry_run_counts_without_weights(trees, tmp_path, capsys, name):
    assert cli.call(["run", "--benchmark", f"{name}:size=8", "--model", "mlp:width=10", "--methods", "naive",
                     "--seeds", "1", "--dry-run", "--data", str(trees), "--out", str(tmp_path / "out")]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if " naive " in line)
    assert "\u2013" not in row, row  # trainable parameters and FLOPs were counted


def test_benchmarks_are_learned(trees, tmp_path):
    ni, birds = (clbench.run(benchmark=name, methods="naive", model="mlp:width=20", seeds=1, iterations=5, workers=0,
                             threads=1, device="cpu", data=trees, out=tmp_path / name.partition(":")[0])[0]
                 for name in ("core50:size=8:labels=categories", "split-cub200:size=8:tasks=4:read=memory"))
    assert ni.status == birds.status == "done", (ni.failure, birds.failure)
    assert ni.stream.train_samples == [50] * 8 and set(ni.stream.test_samples) == {150} and ni.stream.common_test
    assert birds.stream.train_samples == [100] * 4
    assert birds.trial.scenario == "class" and ni.trial.scenario == "domain"


def test_a_plugin_declares_a_benchmark_as_its_template_shows(tmp_path, monkeypatch, capsys):
    from importlib.resources import files

    template = (files("clbench.cli") / "templates" / "benchmark" / "README.md.in").read_text()
    block = template.partition("checks them:\n")[2].partition("In `$module")[0]
    code = "\n".join(line[4:] for line in block.splitlines())
    for old, new in (("${cls}", "Mine"), ("$name", "my-birds"), ("$module", "my_birds")):
        code = code.replace(old, new)
    package = tmp_path / "plugin"
    package.mkdir()
    (package / "my_birds.py").write_text(f"from clbench import hookimpl\n{code}\n".replace(
        "my_birds.benchmark:build", "clbench.data.own.photos:build_named"))
    root = named_trees.pilot(tmp_path / "my-photos", WNIDS[:10])
    plugin = ["--plugin", str(package / "my_birds.py")]
    assert cli.call(["data", "my-birds", "--data", str(tmp_path), *plugin]) == 1
    assert "  missing  train.txt\n           The list of training photos. Put it there." in capsys.readouterr().out
    for part, each in (("train", "ab"), ("test", "c")):
        (root / f"{part}.txt").write_text("".join(f"{part}/{wnid}/{name}.png {label}\n" for name in each
                                                  for label, wnid in enumerate(WNIDS[:10])))
    assert cli.call(["data", "my-birds", "--data", str(tmp_path), *plugin]) == 0
    assert "license: CC BY 4.0" in capsys.readouterr().out
    (record,) = clbench.run(benchmark="my-birds:size=8", methods="naive", model="mlp:width=20", seeds=1, iterations=3,
                            workers=0, threads=1, device="cpu", data=tmp_path, out=tmp_path / "out",
                            plugins=[package / "my_birds.py"])
    assert record.status == "done" and record.stream.train_samples == [4] * 5, record.failure
