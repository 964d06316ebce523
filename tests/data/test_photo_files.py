"""Photos that stay in their files: what is decoded, when, and what of them identifies a stream."""

import multiprocessing
import pickle
import shutil
import time
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
import torch
from helpers.photo_folders import upright, write_photos
from PIL import Image
from pydantic import ValidationError
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor
from torchvision.transforms import functional as F

from clbench.core import seeds
from clbench.core.errors import DataError, SpecError
from clbench.core.registry import discover
from clbench.data import photo_files
from clbench.data.arrival import arrive
from clbench.data.own import photos as own_photos
from clbench.data.own_options import ImagesOptions
from clbench.data.photo_files import Photos, PhotoTable, Reading, decode_in_order
from clbench.data.photo_samples import PhotosAhead, PhotoSamples, Request
from clbench.data.prepare import RandomResizedCrop
from clbench.data.samples import Samples
from clbench.data.stream import load_stream, read_benchmark
from clbench.experiment.arrival import Arrival
from clbench.experiment.trial import Resolved

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("folder") / "photos")


@pytest.fixture
def undecoded(monkeypatch):
    """Let no photo be decoded."""
    def decoded(*_):
        raise AssertionError("a photo was decoded")

    monkeypatch.setattr("clbench.data.photo_files.read_photo", decoded)


def resolved(where, **options):
    return Resolved(name=f"images:{where}", options=ImagesOptions(**{"tasks": 2, **options}).model_dump())


def stream(where, data, validation=0.0, scenario="class", seed=0, **options):
    return load_stream(resolved(where, **options), scenario, seed, data, discover(), validation)


def path_of(samples, i):
    return samples.photos.table.path(int(samples.photos.rows[i]))


@pytest.mark.parametrize("options", [
    {"size": 24}, {}, {"size": 8}, {"resize": 30, "crop": 24}, {"resize": 30, "crop": 24, "interpolation": "bilinear"}])
@pytest.mark.parametrize("validation", [0.0, 0.25])
def test_the_samples_are_those_that_memory_has(folder, tmp_path, options, validation):
    memory = stream(folder, tmp_path, validation, **options)
    for _ in range(2):  # built, then from the cache
        files = stream(folder, tmp_path, validation, read="files", **options)
        assert files.input_shape == memory.input_shape and files.notes == memory.notes
        for ours, theirs in zip(files.tasks, memory.tasks, strict=True):
            assert (ours.classes, ours.class_names) == (theirs.classes, theirs.class_names)
            for part in ("train", "test"):
                some, plain = getattr(ours, part), getattr(theirs, part)
                assert isinstance(some, PhotoSamples) and torch.equal(some.y, plain.y)
                assert torch.equal(torch.cat([chunk.x for chunk in some.chunks(7)]), plain.x)
        batches = zip(files.tests.batches(5), memory.tests.batches(5), strict=True)
        assert all(torch.equal(ours, theirs) for pair in batches for ours, theirs in zip(*pair, strict=True))
        for args in ((5, 1), (5, 0, 1)):
            ours, theirs = (next(stream.tests.batches(*args)) for stream in (files, memory))
            assert all(map(torch.equal, ours, theirs))


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_resize_and_crop_are_those_of_torchvision(folder, tmp_path, interpolation):
    transform = Compose([Resize(33, InterpolationMode(interpolation)), CenterCrop(28)])
    train = stream(folder, tmp_path, read="files", resize=33, crop=28, interpolation=interpolation).tasks[0].train
    x = train.photos.read()
    assert {path_of(train, i)[-4:] for i in range(len(train))} == {".jpg", ".png"}
    for i in range(len(train)):
        assert torch.equal(x[i], F.pil_to_tensor(transform(upright(path_of(train, i))))), path_of(train, i)


@pytest.mark.parametrize(("interpolation", "of_crops"), [
    ("bicubic", None), ("bilinear", None), ("bicubic", "bilinear"), ("bilinear", "bicubic")])
def test_crops_are_those_of_torchvision_on_the_original_photo(folder, tmp_path, interpolation, of_crops):
    read = stream(folder, tmp_path, read="files", size=24, interpolation=interpolation, augment="random-resized-crop",
                  crop_scale=0.05, crop_interpolation=of_crops)
    train, crop = read.tasks[0].train, read.augment.sized(20)
    assert crop == RandomResizedCrop(20, 0.05, of_crops)
    index = torch.randperm(len(train), generator=seeds.generator(0, "a"))
    draws = crop.draw(len(index), seeds.generator(0, "b"))
    whole, crops = train.take_crops(Request(index, crop, draws))
    assert torch.equal(whole.y, train.y[index]) and whole.x.shape == (len(index), 3, 24, 24)
    alone, again = train.take_crops(Request(index, crop, draws, whole=False))
    assert torch.equal(alone.x, crops) and torch.equal(again, crops)
    mirrored = 0
    for row, (i, draw) in enumerate(zip(index.tolist(), draws, strict=True)):
        image = upright(path_of(train, i))
        box, = crop.draw_boxes(draw[None], image.height, image.width).tolist()
        want = F.resized_crop(image, *box, [20, 20], InterpolationMode(of_crops or interpolation))
        if draw[-1] < 0.5:
            want, mirrored = F.hflip(want), mirrored + 1
        assert torch.equal(crops[row], F.pil_to_tensor(want)), path_of(train, i)
    assert 0 < mirrored < len(index)


@pytest.mark.parametrize("read", ["files", "memory"])
def test_photos_are_normalized_by_imagenets_mean_and_deviation(folder, tmp_path, read):
    read_stream = stream(folder, tmp_path, read=read, size=None, resize=33, crop=28, normalize="imagenet")
    plain = stream(folder, tmp_path, read="files", size=None, resize=33, crop=28).tasks[0].train.photos
    inputs = torch.cat([read_stream.prepare(chunk.x) for chunk in read_stream.tasks[0].train.chunks(7)])
    transform = Compose([Resize(33, InterpolationMode.BICUBIC), CenterCrop(28), ToTensor(),
                         Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])])
    for row, x in zip(plain.rows.tolist(), inputs, strict=True):
        torch.testing.assert_close(x, transform(upright(plain.table.path(row))), rtol=0, atol=1e-5)


def test_boxes_of_photos_of_several_sizes_are_those_of_each_size():
    crop, sizes = RandomResizedCrop(), torch.tensor([[20, 30], [500, 3], [4, 900], [64, 64]]).repeat(50, 1)
    draws = crop.draw(len(sizes), seeds.generator(0))
    together = crop.draw_boxes(draws, sizes[:, :1], sizes[:, 1:])
    for box, draw, (height, width) in zip(together, draws, sizes.tolist(), strict=True):
        assert torch.equal(box, crop.draw_boxes(draw[None], height, width)[0])
        top, left, rows, columns = box.tolist()
        assert 0 <= top <= height - rows and 0 <= left <= width - columns and rows > 0 and columns > 0


def test_gray_photos_alone_keep_one_channel(tmp_path):
    for c in "ab":
        for i in range(5):
            (tmp_path / "p" / c).mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((9, 9), 10 * i, np.uint8)).save(tmp_path / "p" / c / f"{i}.png")
    read = stream(tmp_path / "p", tmp_path, read="files", scenario="class")
    assert read.input_shape == (1, 9, 9)
    assert set(read.tasks[0].train.photos.read().flatten().tolist()) <= {0, 10, 20, 30, 40}
    for place in ("files", "memory"):
        with pytest.raises(DataError, match="normalize = imagenet is for color images of bytes, and its samples are"):
            stream(tmp_path / "p", tmp_path, read=place, scenario="class", normalize="imagenet")


def test_photos_may_be_indexed_and_joined_without_being_decoded(folder, tmp_path, undecoded):
    read = stream(folder, tmp_path, 0.25, read="files", size=24).to("cpu", room=0)
    first, second = (task.train for task in read.tasks)
    assert not any("stay on the host" in note for note in read.notes)
    both = Samples.concat(first, second)
    assert isinstance(both, PhotoSamples) and len(both) == len(first) + len(second)
    assert path_of(both, len(first) + 3) == path_of(second, 3)
    some = first.restricted(torch.tensor([5, 2]))
    assert [path_of(some, i) for i in (0, 1)] == [path_of(first, 5), path_of(first, 2)]
    drawn = first.subset(3, seeds.generator(0))
    order = torch.randperm(len(first), generator=seeds.generator(0))
    assert torch.equal(drawn.photos.rows, first.photos.rows[order[:3]]) and torch.equal(drawn.y, first.y[order[:3]])
    assert first.subset(None, seeds.generator(0)) is first and first.materialized() is first
    assert first.photos.shape == (len(first), 3, 24, 24) and first.photos[:2].shape[0] == 2
    arrived = arrive(read, Arrival(blur=0.3), "class", 0, "x")
    rows = torch.cat([task.train.photos.rows for task in arrived.tasks])
    assert sorted(rows.tolist()) == sorted([*first.photos.rows.tolist(), *second.photos.rows.tolist()])
    y = {path_of(part, i): int(part.y[i]) for part in (first, second) for i in range(len(part))}
    for task in arrived.tasks:
        assert [y[path_of(task.train, i)] for i in range(len(task.train))] == task.train.y.tolist()


def test_all_inputs_at_once_are_refused(folder, tmp_path):
    train = stream(folder, tmp_path, read="files", size=24).tasks[0].train
    with pytest.raises(SpecError, match=r"stay in their files \(read = files\).* choose read=memory"):
        train.x  # noqa: B018
    held = train.take(torch.arange(3))
    for parts in ((train, held), (held, train)):
        with pytest.raises(SpecError, match="stay in their files"):
            Samples.concat(*parts)


def test_chunks_from_a_number_on_decode_none_of_those_before(folder, tmp_path, monkeypatch):
    train = stream(folder, tmp_path, read="files", size=24).tasks[0].train
    decoded = []
    begun = Reading.__init__
    monkeypatch.setattr(Reading, "__init__", lambda self, photos, *rest, **more: (
        decoded.extend(photos.rows.tolist()), begun(self, photos, *rest, **more))[1])
    chunk = next(train.chunks(7, 2))
    assert torch.equal(chunk.x, train.photos[14:21].read()) and torch.equal(chunk.y, train.y[14:21])
    assert not set(decoded) & set(train.photos.rows[:14].tolist())


def test_at_most_three_batches_are_decoded_ahead(folder, tmp_path, monkeypatch):
    photos = stream(folder, tmp_path, read="files", size=24).tasks[0].train.photos
    begun = []

    def started():
        for number in range(8):
            begun.append(number)
            yield Reading(photos[number:number + 1])

    ahead = [len(begun) - number - 1 for number, _ in enumerate(decode_in_order(started()))]
    assert ahead == [3, 3, 3, 3, 3, 2, 1, 0]
    monkeypatch.setattr(photo_files, "AHEAD_BYTES", 2 * 3 * 24 * 24)
    begun.clear()
    assert [len(begun) - number - 1 for number, _ in enumerate(decode_in_order(started()))][:3] == [2, 2, 2]


def test_batches_decoded_ahead_are_those_that_are_asked_for(folder, tmp_path):
    train = stream(folder, tmp_path, read="files", size=24).tasks[0].train
    indices = [torch.tensor(rows) for rows in ([1, 4], [0, 2], [3])]
    ahead = PhotosAhead(train, iter(map(Request, indices)))
    for index in indices[:2]:
        assert torch.equal(ahead.take(index).x, train.take(index).x)
    with pytest.raises(RuntimeError, match="another batch of photos was decoded ahead"):
        ahead.take(torch.tensor([5]))


def test_a_broken_photo_is_named_and_so_is_one_of_another_size(tmp_path):
    root = write_photos(tmp_path / "p", each=6)
    train = stream(root, tmp_path, read="files", resize=30, crop=24).tasks[0].train
    content = (root / "class0" / "2.png").read_bytes()
    index = next(i for i in range(len(train)) if path_of(train, i).endswith("class0/2.png"))
    (root / "class0" / "2.png").write_bytes(content[:len(content) // 2])
    for read in (lambda: train.take(torch.tensor([index])), lambda: list(train.chunks(4)), train.photos.read):
        with pytest.raises(DataError, match=r"photo .*/p/class0/2\.png cannot be read \(OSError: .*truncated"):
            read()
    Image.new("RGB", (70, 71)).save(root / "class0" / "2.png")
    with pytest.raises(DataError, match=r"class0/2\.png cannot be read \(ValueError: it has 70 x 71 pixels, and had"):
        train.take(torch.tensor([index]))
    reduced = stream(root, tmp_path, read="files", size=16).tasks[0].train  # decoded at a lower resolution
    Image.new("RGB", (200, 30)).save(root / "class0" / "2.png")
    index = next(i for i in range(len(reduced)) if path_of(reduced, i).endswith("class0/2.png"))
    with pytest.raises(DataError, match="it has 200 x 30 pixels, and had"):
        reduced.take(torch.tensor([index]))
    (root / "class0" / "2.png").write_bytes(b"no photo")
    with pytest.raises(DataError, match=r"1 of 24 photos cannot be read.*2\.png"):
        stream(root, tmp_path, read="files")


def read_there(content):
    """Return what a process decodes of pickled samples."""
    samples = pickle.loads(content)
    return samples.take(torch.tensor([3, 1])).x.numpy()


@pytest.mark.slow
def test_samples_go_to_another_process(folder, tmp_path):
    train = stream(folder, tmp_path, read="files", size=24).tasks[1].train
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        there = pool.submit(read_there, pickle.dumps(train)).result()
    assert np.array_equal(there, train.take(torch.tensor([3, 1])).x.numpy())


def test_a_fork_decodes_with_threads_of_its_own(folder, tmp_path):
    train = stream(folder, tmp_path, read="files", size=24).tasks[1].train
    here = train.take(torch.tensor([3, 1])).x.numpy()  # the threads of this process exist now
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        assert np.array_equal(pool.submit(read_there, pickle.dumps(train)).result(60), here)


def test_the_digest_is_of_contents_labels_and_preprocessing_and_not_of_places(tmp_path):
    root = write_photos(tmp_path / "p", each=6)

    def digest(where=root, **options):
        data = tmp_path / f"data{time.monotonic_ns()}"
        built, kept = (read_benchmark(resolved(where, read="files", **{"size": 24, **options}), 0, data, discover())
                       for _ in range(2))
        assert built.digest == kept.digest
        return built.digest

    first = digest()
    shutil.copytree(root, tmp_path / "copy")
    assert digest(tmp_path / "copy") == first
    others = {digest(size=25), digest(interpolation="bilinear"), digest(size=None, resize=24, crop=24),
              digest(augment="crop-flip"), digest(tasks=4), digest(augment="random-resized-crop"),
              digest(augment="random-resized-crop", crop_scale=0.05), digest(normalize="imagenet"),
              digest(augment="random-resized-crop", crop_interpolation="bicubic")}
    (root / "class0" / "0.png").replace(root / "class1" / "new.png")
    others.add(digest())
    (root / "class1" / "new.png").replace(root / "class0" / "0.png")
    assert digest() == first
    Image.new("RGB", (30, 30)).save(root / "class0" / "0.png")
    others.add(digest())
    assert len(others) == 11 and first not in others


def test_the_cache_holds_no_pixels_and_notices_a_change(tmp_path):
    root = write_photos(tmp_path / "p", each=6)
    before = stream(root, tmp_path, read="files", size=200)
    cached, = (tmp_path / "streams").glob("*.safetensors")
    assert cached.stat().st_size < 24 * 1000 < before.tasks[0].train.photos.shape[1:].numel()
    Image.new("RGB", (30, 30), (1, 2, 3)).save(root / "class0" / "0.png")
    after = stream(root, tmp_path, read="files", size=200)
    assert after.fingerprint != before.fingerprint
    assert any("was built again: the data files it was made from have changed" in note for note in after.notes)


def test_copies_in_the_test_are_told_by_their_contents(tmp_path):
    root = write_photos(tmp_path / "p" / "train", each=6)
    write_photos(tmp_path / "p" / "test", each=2, seed=1)
    shutil.copy(root / "class0" / "0.png", tmp_path / "p" / "test" / "class0" / "copy.png")
    notes = stream(tmp_path / "p", tmp_path, read="files", size=24).notes
    assert "1 of 9 test samples are exact copies of training samples" in notes


def test_photos_that_do_not_fit_into_memory_are_an_error_that_names_the_way_out(tmp_path, monkeypatch):
    root = write_photos(tmp_path / "p", each=6)
    monkeypatch.setattr(own_photos, "host_memory_left", lambda: 24 * 3 * 24 * 24 - 1)
    with pytest.raises(DataError, match=r"24 photos of 24 x 24 pixels take 0\.0 GB.*; read=files reads them"):
        stream(root, tmp_path, size=24)
    assert len(stream(root, tmp_path, size=24, read="files").tasks) == 2
    monkeypatch.setattr(own_photos, "host_memory_left", lambda: 24 * 3 * 24 * 24)
    assert len(stream(root, tmp_path, size=24).tasks) == 2


@pytest.mark.parametrize(("options", "message"), [
    ({"resize": 30}, "resize and crop go together"), ({"crop": 30}, "resize and crop go together"),
    ({"resize": 20, "crop": 30}, "crop = 30 is larger than resize = 20"),
    ({"resize": 30, "crop": 20, "size": 20}, "give size, or resize and crop, not both")])
def test_sizes_that_contradict_each_other_are_refused(options, message):
    with pytest.raises(ValidationError, match=message):
        ImagesOptions(**options)


def test_new_options_do_not_change_the_keys_of_old_trials():
    assert not {"read", "resize", "crop", "interpolation", "crop_scale", "crop_interpolation"} & set(
        ImagesOptions(augment="random-resized-crop").model_dump())
    assert ImagesOptions(read="files").model_dump()["read"] == "files"


def test_photos_of_different_tables_are_not_joined(folder, tmp_path):
    photos = stream(folder, tmp_path, read="files", size=24).tasks[0].train.photos
    table = PhotoTable(*(getattr(photos.table, name) for name in ("root", "names", "ends", "sizes", "hashes")))
    with pytest.raises(ValueError, match="cannot be joined"):
        Photos.concat([photos, Photos(table, photos.rows, photos.format)])
