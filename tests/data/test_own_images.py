"""Folders of photos as a benchmark."""

import io
import struct
import zlib
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from PIL import Image

from clbench import cli
from clbench.core.errors import DataError, MissingDataError
from clbench.core.registry import discover
from clbench.data.own.lists import find_photos, image_files
from clbench.data.own.photos import read_photos
from clbench.data.own.pixels import head_of
from clbench.data.own_options import ImagesOptions, PhotoOptions
from clbench.data.stream import load_stream
from clbench.experiment.trial import Resolved

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def photo(color=RED, size=(20, 20), mode="RGB"):
    return Image.new("RGB", size, color).convert(mode)


def save(path, image=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or photo()).save(path, **options)


def opened(images):
    def as_png(image):
        file = io.BytesIO()
        image.save(file, "PNG")
        return file

    return [as_png(image) for image in images]


def stream(where, data_dir, scenario="task", **options):
    resolved = Resolved(name=f"images:{where}", options=ImagesOptions(**options).model_dump())
    return load_stream(resolved, scenario, 0, data_dir, discover())


def folder(root, classes=("ant", "bee", "cat", "dog"), count=5):
    for number, name in enumerate(classes):
        for index in range(count):
            save(root / name / f"{index}.png", photo((50 * number, index, 0)))
    return root


def test_a_lack_of_memory_is_no_fault_of_a_photo(tmp_path, monkeypatch):
    def hungry(*_):
        raise MemoryError

    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    monkeypatch.setattr("clbench.data.own.photos.turn_upright", hungry)
    with pytest.raises(MemoryError):
        read_photos([[tmp_path / "a.png"]], PhotoOptions(), "here")


def test_a_folder_of_classes_becomes_tasks_with_a_share_held_out(tmp_path):
    read = stream(folder(tmp_path / "photos"), tmp_path, tasks=2)
    assert [len(task.train) for task in read.tasks] == [8, 8]
    assert [len(task.test) for task in read.tasks] == [2, 2]
    assert read.input_shape == (3, 20, 20)
    x = read.tasks[1].train.x
    assert x.dtype == torch.uint8
    assert set(x[:, 0, 0, 0].tolist()) == {100, 150}
    assert torch.equal(read.tasks[1].train.y, (x[:, 0, 0, 0] // 50).long())


def test_train_and_test_are_used_as_they_are(tmp_path):
    folder(tmp_path / "p" / "train", count=3)
    folder(tmp_path / "p" / "val", count=1)
    folder(tmp_path / "p" / "extra", count=1)
    read = stream("p", tmp_path, tasks=2)  # found in the data folder
    assert [(len(task.train), len(task.test)) for task in read.tasks] == [(6, 2), (6, 2)]
    assert "the test part is the folder 'val'" in read.notes
    assert "folders next to 'train' that were not used: extra" in read.notes
    assert any(note.startswith("8 of") or "exact copies" in note for note in read.notes)


def test_folders_may_be_tasks(tmp_path):
    for site in ("north", "south"):
        folder(tmp_path / "p" / site, ("ill", "well"))
    read = stream(tmp_path / "p", tmp_path, "domain", tasks_from="folders", tasks_in_order="south+north")
    assert [task.classes for task in read.tasks] == [(0, 1), (0, 1)]
    train, _, _ = find_photos(f"images:{tmp_path / 'p'}", ImagesOptions(tasks_from="folders"), tmp_path)
    assert train.labeled.tasks == ["north"] * 10 + ["south"] * 10
    assert train.labeled.labels[:10] == ["ill"] * 5 + ["well"] * 5


def test_tasks_of_different_classes_share_outputs_only_if_the_user_asks_for_it(tmp_path, capsys):
    for month, classes in (("1", ("red", "round")), ("2", ("blue", "long")), ("3", ("wet", "dry"))):
        folder(tmp_path / "p" / month, classes)
    call = ["run", "--benchmark", f"images:{tmp_path / 'p'}:tasks_from=folders", "--methods", "naive", "--epochs", "1",
            "--seeds", "1", "--workers", "0", "--data", str(tmp_path), "--out", str(tmp_path / "run")]
    for more in ([], ["--dry-run"]):
        assert cli.call([*call, *more]) == 2
        assert ("tasks have different classes, and the default scenario 'domain' would give 'red' and 'blue' one "
                "output; choose --scenario class (or task, ") in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "run").exists()
    read = stream(tmp_path / "p", tmp_path, "domain", tasks_from="folders")
    assert "classes share an output: output 0 = red / blue / dry, output 1 = round / long / wet" in read.notes
    assert not any("share" in note for note in stream(tmp_path / "p", tmp_path, "class", tasks_from="folders").notes)


def test_folders_within_classes_may_be_groups(tmp_path):
    for patient in range(5):
        save(tmp_path / "p" / "ill" / f"patient{patient}" / "a.png")
        save(tmp_path / "p" / "well" / f"patient{patient}" / "b.png")
    name = f"images:{tmp_path / 'p'}"
    train, _, notes = find_photos(name, ImagesOptions(groups_from="folders"), tmp_path)
    assert train.labeled.groups == [f"patient{i}" for i in range(5)] * 2
    assert not notes
    with pytest.raises(DataError, match=r"the same folders \(patient0, .*tasks_from=folders .* groups_from=folders"):
        find_photos(name, ImagesOptions(), tmp_path)
    save(tmp_path / "p" / "ill" / "patient5" / "a.png")
    (tmp_path / "p" / "odd").mkdir()
    _, _, notes = find_photos(name, ImagesOptions(), tmp_path)
    assert "no photos in the folders: odd" in notes
    assert any("photos in folders within those of the classes: 11 (" in note for note in notes)


@pytest.mark.parametrize(("strays", "clear"), [(1, False), (3, True)])
def test_a_stray_photo_does_not_make_classes_of_sites(strays, clear, tmp_path):
    for site in ("north", "south"):
        folder(tmp_path / "p" / site, ("ill", "well"))
    for stray in range(strays):
        save(tmp_path / "p" / "north" / f"stray{stray}.png")
    message = r"the same folders \(ill, well\).*and the inner ones groups; photos outside the inner folders: 1$"
    with nullcontext() if clear else pytest.raises(DataError, match=message):
        find_photos(f"images:{tmp_path / 'p'}", ImagesOptions(), tmp_path)


def test_parts_with_other_names_are_not_called_tasks_or_groups_alone(tmp_path):
    for part in ("Training", "Testing"):
        folder(tmp_path / "p" / part, count=2)
    with pytest.raises(DataError, match=r"; name them train and test if they are the parts of the data$"):
        find_photos(f"images:{tmp_path / 'p'}", ImagesOptions(), tmp_path)


def test_a_link_to_a_folder_that_contains_it_is_an_error(tmp_path):
    folder(tmp_path / "p", count=2)
    (tmp_path / "linked").symlink_to(tmp_path / "p")  # a link elsewhere is followed
    (tmp_path / "p" / "more").symlink_to(tmp_path / "p" / "ant")
    train, _, _ = find_photos(f"images:{tmp_path / 'linked'}", ImagesOptions(), tmp_path)
    assert train.labeled.labels.count("ant") == train.labeled.labels.count("more") == 2
    (tmp_path / "p" / "ant" / "all").symlink_to(tmp_path / "p")
    for root in ("p", "linked"):
        with pytest.raises(DataError, match=r"all is a link to a folder that contains it; remove the link$"):
            find_photos(f"images:{tmp_path / root}", ImagesOptions(), tmp_path)


def test_all_files_are_named_and_what_is_no_photo_is_told(tmp_path):
    folder(tmp_path / "p" / "train", count=2)
    folder(tmp_path / "p" / "test", count=1)
    (tmp_path / "p" / "train" / "ant" / "notes.txt").write_text("no photo")
    (tmp_path / "p" / "train" / "ant" / ".hidden.png").write_text("")
    (tmp_path / "p" / "train" / "bee" / "phone.HEIC").write_text("")
    files = image_files(f"images:{tmp_path / 'p'}", {}, tmp_path)
    assert len(files) == 12 and all(file.is_file() for file in files)
    notes = find_photos(f"images:{tmp_path / 'p'}", ImagesOptions(), tmp_path)[2]
    assert notes == [f"files in {tmp_path / 'p' / 'train'} that do not have the suffix of a photo were left out: "
                     "2 (.heic, .txt)"]


def test_photos_of_several_sizes_are_brought_to_one(tmp_path):
    photos = [photo(RED, (40, 20)), photo(GREEN, (20, 60)), photo(BLUE, (10, 10))]
    (x,), notes = read_photos([opened(photos)], PhotoOptions(), "x")
    assert x.shape == (3, 3, 32, 32)
    assert notes == ["photos were brought to 32 x 32 pixels, as neither the model nor size=N says another size; they "
                     "are 10 x 10 to 20 x 60"]
    assert (x[0, :, 3, 3].tolist(), x[2, :, 31, 31].tolist()) == ([255, 0, 0], [0, 0, 255])
    (x,), notes = read_photos([opened(photos)], PhotoOptions(size=16), "x")
    assert x.shape == (3, 3, 16, 16) and notes == ["photos were brought to 16 x 16 pixels; they are 10 x 10 to 20 x 60"]


def test_the_middle_is_cut_out():
    image = Image.new("RGB", (60, 20), RED)
    image.paste(GREEN, (20, 0, 40, 20))
    (x,), _ = read_photos([opened([image])], PhotoOptions(size=20), "x")
    assert (x[0].float().mean((1, 2)) - torch.tensor([0.0, 255, 0])).abs().max() == 0


def test_photos_are_decoded_after_they_are_divided(tmp_path, monkeypatch):
    for name in ("a", "b"):
        for number in range(4):
            save(tmp_path / "p" / name / f"{number}.png")
    monkeypatch.setattr("clbench.data.own.photos.read_photos", None)
    with pytest.raises(DataError, match="classes_in_order must list each of a, b once, and c is not there"):
        stream(tmp_path / "p", tmp_path, tasks=2, classes_in_order="a+c")
    with pytest.raises(DataError, match=r"and a,b is not there; a list is written with \+, as in a\+b$"):
        stream(tmp_path / "p", tmp_path, tasks=2, classes_in_order="a,b")


def test_the_memory_that_photos_need_includes_the_copies_of_the_caller(monkeypatch):
    monkeypatch.setattr("clbench.data.own.photos.host_memory_left", lambda: 2 * 3 * 20 * 20)
    parts = [opened([photo()]), opened([photo((7, 7, 7), mode="L")])]
    x, _ = read_photos(parts, PhotoOptions(), "x")
    assert [part.shape for part in x] == [(1, 3, 20, 20)] * 2  # all have three channels if one photo has
    with pytest.raises(DataError, match="2 photos of 20 x 20 pixels take"):
        read_photos(parts, PhotoOptions(), "x", copies=2)


def test_small_photos_of_one_size_stay_as_they_are_and_large_ones_do_not():
    assert read_photos([opened([photo(size=(50, 64))] * 2)], PhotoOptions(), "x")[0][0].shape == (2, 3, 64, 50)
    assert read_photos([opened([photo(size=(65, 65))] * 2)], PhotoOptions(), "x")[0][0].shape == (2, 3, 32, 32)


def test_the_header_of_a_png_needs_no_pixels_unless_metadata_follow_them(tmp_path, monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = 6
    file = tmp_path / "a.png"
    Image.new("RGB", (20, 10)).save(file)
    plain = file.read_bytes()
    data = exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(data)) + b"eXIf" + data + struct.pack(">I", zlib.crc32(b"eXIf" + data))
    file.write_bytes(plain[:-12] + chunk + plain[-12:])  # before IEND
    assert head_of(Image.open(file)) == (10, 20, "RGB", True)
    file.write_bytes(plain[:-30])
    with pytest.raises(OSError, match="truncated"):
        head_of(Image.open(file))
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", None)
    file.write_bytes(plain)
    assert head_of(Image.open(file)) == (20, 10, "RGB", False)
    Image.new("RGB", (20, 10)).save(file, exif=exif)
    assert head_of(Image.open(file)) == (10, 20, "RGB", True)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_exif_is_turned_and_told(name, tmp_path):
    image = Image.new("RGB", (20, 10), RED)
    image.paste(GREEN, (0, 0, 10, 10))  # the left half; turned by 90 degrees clockwise it is the upper one
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / name, exif=exif)
    assert head_of(Image.open(tmp_path / name)) == (10, 20, "RGB", True)
    (x,), notes = read_photos([[tmp_path / name]], PhotoOptions(), "x")
    assert x.shape == (1, 3, 20, 10)
    assert x[0, :, 0, 5].tolist() == list(GREEN) and x[0, :, 19, 5].tolist() == list(RED)
    assert notes == ["1 of 1 photos were turned upright as their EXIF says"]


def test_other_modes_become_rgb_with_counts():
    kinds = [photo(RED), photo(RED, mode="RGBA"), photo(RED, mode="P"), photo((9, 9, 9), mode="L"),
             Image.fromarray(np.full((20, 20), 257 * 77, np.uint16))]
    (x,), notes = read_photos([opened(kinds)], PhotoOptions(), "x")
    assert x[:3, :, 0, 0].tolist() == [list(RED)] * 3
    assert x[3:, :, 0, 0].tolist() == [[9] * 3, [77] * 3]
    assert notes == ["1 of 5 photos have more than 8 bits per pixel: 0 to 65,535 became 0 to 255",
                     "photos that became RGB, of 5: 2 gray, 1 of a palette, 1 with transparency, which was dropped"]


@pytest.mark.parametrize(("low", "high", "message"), [
    (0, 65535, None), (7, 65536, "its pixels are 7 to 65,536, not within 0 to 65,535; scale them"), (-9, 5, "-9 to 5")])
def test_integers_that_16_bits_do_not_hold_are_refused(low, high, message, tmp_path):
    Image.fromarray(np.array([[low, high]] * 2, np.int32)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=rf"a\.tif .*{message}") if message else nullcontext():
        assert read_photos([[tmp_path / "a.tif"]], PhotoOptions(), "x")[0][0][0, 0, 0].tolist() == [0, 255]


def test_gray_photos_alone_keep_one_channel():
    (x,), notes = read_photos([opened([photo((7, 7, 7), mode="L")] * 2)], PhotoOptions(), "x")
    assert x.shape == (2, 1, 20, 20) and (x == 7).all()
    assert notes == ["all 2 photos are gray and have one channel"]


def test_a_large_jpeg_is_read_as_the_same_picture(tmp_path):
    ramp = np.linspace(0, 255, 800).astype(np.uint8)
    image = Image.fromarray(np.stack([np.tile(ramp, (800, 1))] * 3, 2))
    image.save(tmp_path / "a.jpg", quality=95)
    (x,), _ = read_photos([[tmp_path / "a.jpg"]], PhotoOptions(size=32), "x")
    want = np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    assert np.abs(x[0].numpy().astype(int) - want).max() <= 3


def test_unreadable_files_are_an_error_that_names_three(tmp_path):
    root = folder(tmp_path / "p")
    for index in range(4):
        (root / "ant" / f"{index}.png").write_bytes(b"no png")
    with pytest.raises(DataError, match=r"4 of 20 photos cannot be read.*0\.png.*1\.png.*\d\.png[^;]*\.\.\.$"):
        stream(root, tmp_path)


def test_a_photo_above_the_limit_of_pillow_is_named_with_what_to_do(tmp_path, monkeypatch):
    folder(tmp_path / "p")
    save(tmp_path / "p" / "ant" / "0.png", photo(size=(30, 30)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 440)
    with pytest.raises(DataError, match=r"1 of 20 photos cannot be read.*0\.png \(it has more than 880 pixels, "
                                        r"Pillow's limit: make it smaller\)"):
        stream(tmp_path / "p", tmp_path)


def test_a_truncated_file_is_an_error(tmp_path):
    root = folder(tmp_path / "p")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 20, 3), np.uint8)).save(root / "ant" / "0.png")
    content = (root / "ant" / "0.png").read_bytes()
    (root / "ant" / "0.png").write_bytes(content[:len(content) // 2])
    with pytest.raises(DataError, match=r"1 of 20 photos cannot be read.*0\.png"):
        stream(root, tmp_path)


def test_missing_and_wrong_folders_are_errors_that_say_where(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingDataError, match=f"there is no {tmp_path}/nothing and no {tmp_path}/data/nothing; check"):
        find_photos("images:nothing", ImagesOptions(), tmp_path / "data")
    (tmp_path / "empty" / "ant").mkdir(parents=True)
    with pytest.raises(DataError, match="needs a folder for each class, but there are no photos in it"):
        find_photos("images:empty", ImagesOptions(), tmp_path)
    folder(tmp_path / "flat")
    with pytest.raises(DataError, match=r"a folder for each task.* the photos in it lie outside such folders"):
        find_photos("images:flat", ImagesOptions(tasks_from="folders"), tmp_path)
    save(tmp_path / "one.png")
    with pytest.raises(DataError, match="is a file"):
        find_photos("images:one.png", ImagesOptions(), tmp_path)
