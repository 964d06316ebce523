"""Photos that lists name, for `images:DIR`."""

import sys

import pytest
from helpers.named_trees import write
from pydantic import ValidationError

from clbench.core.errors import DataError, MissingDataError
from clbench.core.registry import discover
from clbench.data.own.lists import find_photos, image_files
from clbench.data.own_options import ImagesOptions
from clbench.data.stream import load_stream
from clbench.experiment.trial import Resolved


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "photos"
    for number, name in enumerate(("owl", "cat", "dog", "ant")):
        write(folder / name, ["a.png", "b.png", "c d.png"], number)
    train = "owl/a.png 0\ncat/a.png 1\n\ndog/a.png 10\ndog/c d.png 10\nant/a.png 2\n"
    (folder / "train.txt").write_text(train)
    (folder / "test.txt").write_text("ant/b.png 2\ndog/b.png 10\ncat/b.png 1\nowl/b.png 0\n")
    return folder


def find(root, **options):
    return find_photos(f"images:{root}", ImagesOptions(**options), root)


def test_lists_say_which_photos_are_training_and_test_and_in_which_order_classes_come(root):
    train, test, notes = find(root, train_list="train.txt", test_list="test.txt")
    assert [str(file.relative_to(root)) for file in train.files] == [
        "owl/a.png", "cat/a.png", "dog/a.png", "dog/c d.png", "ant/a.png"]
    assert list(train.labeled.labels) == ["owl", "cat", "dog", "dog", "ant"]
    assert train.labeled.classes == test.labeled.classes == ("owl", "cat", "ant", "dog")  # by label, 2 before 10
    assert list(test.labeled.labels) == ["ant", "dog", "cat", "owl"]
    assert not notes
    files = image_files(f"images:{root}", {"train_list": ["train.txt"], "test_list": ["test.txt"]}, root)
    assert {root / "train.txt", root / "test.txt"} < {*files} and len(files) == 11


def test_a_stream_of_lists_is_the_same_from_memory_and_from_files(root, tmp_path):
    streams = []
    for read in ("memory", "files"):
        options = ImagesOptions(train_list="train.txt", test_list="test.txt", tasks=2, read=read)
        streams.append(load_stream(Resolved(name=f"images:{root}", options=options.model_dump()), "class", 0, tmp_path,
                                   discover()))
    for stream in streams:
        assert [task.class_names for task in stream.tasks] == [("owl", "cat"), ("ant", "dog")]
        assert [(len(task.train), len(task.test)) for task in stream.tasks] == [(2, 2), (3, 2)]
    memory, files = (stream.tasks[1].train for stream in streams)
    assert memory.x.tolist() == files.photos.read().tolist()


def test_photos_of_a_list_may_lie_outside_the_folder(root, tmp_path):
    outside = tmp_path / "elsewhere"
    write(outside, ["b.png"], 7)
    with (root / "train.txt").open("a") as file:
        file.write(f"\n{outside / 'b.png'} owl\n")
    memory, files = (load_stream(Resolved(name=f"images:{root}", options=ImagesOptions(
        train_list="train.txt", test_list="test.txt", tasks=2, read=read).model_dump()), "class", 0, tmp_path,
        discover()).tasks[0].train for read in ("memory", "files"))
    assert memory.x.tolist() == files.photos.read().tolist()


def test_leading_folders_of_paths_are_left_out_and_labels_stay_if_folders_do_not_say_them(root):
    (root / "train.txt").write_text(
        "data/photos/owl/a.png even\n./data/photos/cat/a.png odd\ndata/photos/dog/a.png odd")
    train, test, _ = find(root, train_list="train.txt")
    assert test is None and train.labeled.classes == ()
    assert list(train.labeled.labels) == ["even", "odd", "odd"]
    assert train.files[1] == root / "cat" / "a.png"


def test_a_note_says_that_numbers_are_the_names_of_classes_if_folders_do_not_match_them(root):
    (root / "train.txt").write_text("owl/a.png 0\ncat/a.png 1\ndog/a.png 1\n")
    train, _, notes = find(root, train_list="train.txt")
    assert list(train.labeled.labels) == ["0", "1", "1"]
    assert notes == ["the numbers of the lists are the names of the classes, because numbers and folders do not match "
                     "one to one"]


def test_several_lists_are_joined_and_outer_folders_may_be_tasks(tmp_path):
    for site in ("north", "south"):
        for number, name in enumerate(("ill", "well")):
            write(tmp_path / "p" / site / name, ["a.png", "b.png"], number)
        (tmp_path / f"{site}.txt").write_text("".join(f"{site}/{name}/a.png {label}\n" for label, name in
                                                      enumerate(("ill", "well"))))
        (tmp_path / f"{site}_test.txt").write_text(f"{site}/ill/b.png 0\n")
    train, test, _ = find_photos(f"images:{tmp_path / 'p'}", ImagesOptions(
        train_list="north.txt+south.txt", test_list="north_test.txt+south_test.txt", tasks_from="folders"), tmp_path)
    assert train.labeled.tasks == ["north"] * 2 + ["south"] * 2
    assert list(train.labeled.labels) == ["ill", "well"] * 2 and test.labeled.tasks == ["north", "south"]


def test_yaml_has_data_and_targets(root):
    pytest.importorskip("yaml")
    (root / "train.yaml").write_text("data:\n- data/photos/owl/a.png\n- data/photos/cat/a.png\ntargets:\n- 1\n- 0\n")
    train, _, _ = find(root, train_list="train.yaml")
    assert list(train.labeled.labels) == ["owl", "cat"] and train.labeled.classes == ("cat", "owl")


@pytest.mark.parametrize(("content", "problem"), [
    ("data: [a.png]\n", "expected the keys data (paths) and targets (labels)"),
    ("data: [a.png]\ntargets: [1, 2]\n", "data and targets must be lists of the same length"),
    ("data: [", "it is not YAML"), ("!!python/object/apply:os.getcwd []", "it is not YAML")])
def test_other_yaml_is_an_error(root, content, problem):
    pytest.importorskip("yaml")
    (root / "bad.yaml").write_text(content)
    with pytest.raises(DataError) as error:
        find(root, train_list="bad.yaml")
    assert f"cannot read the list {root / 'bad.yaml'}: {problem}" in str(error.value)


def test_without_pyyaml_the_error_says_how_to_install_it(root, monkeypatch):
    monkeypatch.setitem(sys.modules, "yaml", None)
    (root / "l.yaml").write_text("data: []\ntargets: []\n")
    with pytest.raises(DataError, match=r"^l.yaml is YAML, which needs PyYAML: pip install pyyaml$"):
        find(root, train_list="l.yaml")


def test_missing_lists_photos_and_labels_are_errors_that_name_the_first(root):
    with pytest.raises(MissingDataError, match=r"there is no list .*none.txt and no "):
        find(root, train_list="none.txt")
    (root / "train.txt").write_text("owl/a.png 0\nowl/z.png 0\ncat/y.png 1\n")
    with pytest.raises(MissingDataError) as error:
        find(root, train_list="train.txt")
    assert str(error.value) == (
        f"benchmark 'images:{root}': 2 of 3 photos that train.txt lists are not in {root}; the first is owl/z.png. Add "
        "them, or check that the list belongs to this folder")
    (root / "train.txt").write_text("owl/a.png 0\nowl\n")
    with pytest.raises(DataError, match="line 2 is 'owl', expected PATH LABEL"):
        find(root, train_list="train.txt")
    (root / "train.txt").write_text("")
    with pytest.raises(DataError, match=r"train.txt lists no photos"):
        find(root, train_list="train.txt")


def test_lists_are_read_again_after_a_change(root):
    assert len(find(root, train_list="test.txt")[0].files) == 4
    (root / "test.txt").write_text("ant/b.png 2\n")
    assert len(find(root, train_list="test.txt")[0].files) == 1


@pytest.mark.parametrize(("options", "problem"), [
    ({"test_list": "a.txt"}, "test_list goes with train_list"),
    ({"train_list": "a.txt", "groups_from": "folders"}, "groups_from = folders is for photos that no list names")])
def test_options_that_contradict_lists_are_refused(options, problem):
    with pytest.raises(ValidationError, match=problem):
        ImagesOptions(**options)


@pytest.mark.parametrize("prefix", ["{root}/", "../photos/", "./"])
def test_paths_may_be_absolute_or_relative_to_another_folder(root, prefix):
    lines = [prefix.format(root=root) + line for line in ("owl/a.png 0", "cat/a.png 1", "dog/a.png 0", "ant/a.png 1")]
    (root / "own.txt").write_text("\n".join(lines))
    train, *_ = find(root, train_list="own.txt", tasks_from="folders")
    assert list(train.labeled.tasks) == ["owl", "cat", "dog", "ant"]


def test_photos_outside_the_folder_are_in_no_task(root):
    write(root.parent / "other", ["a.png", "b.png"], 7)
    (root / "own.txt").write_text("../other/a.png 0\nowl/a.png 1\n")
    with pytest.raises(DataError, match="outer folders are tasks"):
        find(root, train_list="own.txt", tasks_from="folders")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_a_folder_whose_name_is_not_utf8_has_a_name_that_can_be_saved(root):
    (root / "owl").rename(root / b"ch\xe8vre".decode("utf-8", "surrogateescape"))
    train, *_ = find(root)
    assert set(train.labeled.labels) == {"ch\\xe8vre", "cat", "dog", "ant"}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_names_that_are_not_utf8_can_be_saved_in_notes_and_groups(root):
    name = b"vide-\xe8".decode("utf-8", "surrogateescape")
    (root / name).mkdir()
    (root / f"x.{name}").touch()
    write(root / "owl" / name, ["a.png"], 0)
    train, _, notes = find(root, groups_from="folders")
    assert "vide-\\xe8" in train.labeled.groups and "no photos in the folders: vide-\\xe8" in notes
    assert sum(note.isprintable() for note in notes) == len(notes) >= 2
    write(root / "train" / "ant", ["a.png"], 0)
    _, _, notes = find(root)
    assert any("not used: ant, cat, dog, owl, vide-\\xe8" in note for note in notes)
