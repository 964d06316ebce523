"""Images as a model's weights want them: resized, normalized, augmented."""

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF
from helpers import tiny_benchmarks
from PIL import Image
from pydantic import ValidationError
from torchvision.transforms import InterpolationMode, RandomResizedCrop

from clbench.core.errors import DataError, SpecError
from clbench.core.pretrained import Preprocessing
from clbench.core.registry import discover
from clbench.data.avalanche.benchmarks import LAYOUT, Layout
from clbench.data.avalanche.build import import_avalanche
from clbench.data.builtin import CIFAROptions
from clbench.data.prepare import AUGMENTATIONS, find_augmentation, resize
from clbench.data.samples import Samples
from clbench.data.stream import Prepare, Stream, StreamTask, load_stream
from clbench.experiment.trial import Resolved
from clbench.training.building import as_inputs

IMAGENET = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def images(count=3, height=20, width=20, channels=3):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, channels, height, width), generator=generator, dtype=torch.uint8)


def stream(x, **options):
    samples = Samples(x, torch.zeros(len(x), dtype=torch.int64), torch.zeros(len(x), dtype=torch.int64))
    return Stream((StreamTask((0,), samples, samples),), 1, tuple(x.shape[1:]), Prepare(**options), "abc", ())


@pytest.mark.parametrize("size", [9, 20, 31, 48])
@pytest.mark.parametrize("kind", ["bicubic", "bilinear"])
def test_images_are_resized_as_pil_resizes_them(size, kind):
    x = images() // 2 + 64  # PIL clips what overshoots after each direction, we at the end
    ours = Prepare(size=size, interpolation=kind)(x)
    theirs = torch.stack([TF.pil_to_tensor(Image.fromarray(one.permute(1, 2, 0).numpy()).resize(
        (size, size), getattr(Image.Resampling, kind.upper()))) for one in x])
    assert (255 * ours - theirs).abs().max() <= 1.2  # PIL rounds to bytes, twice


def test_without_antialias_the_kernel_is_torchs_own():
    x = images()
    ours = Prepare(size=31, antialias=False)(x)
    theirs = torch.nn.functional.interpolate(x.float() / 255, (31, 31), mode="bicubic").clamp(0, 1)
    torch.testing.assert_close(ours, theirs)


def test_of_a_longer_side_the_middle_is_taken():
    x = images(height=12, width=24)
    assert torch.equal(resize(x, 12, "bicubic", antialias=True), x[:, :, :, 6:18])
    tall = resize(x.float().transpose(2, 3), 6, "bilinear", antialias=True)
    torch.testing.assert_close(tall, resize(x.float(), 6, "bilinear", antialias=True).transpose(2, 3))


def test_inputs_do_not_depend_on_the_memory_layout_of_images():
    x = images(3, 20, 24)
    last = x.contiguous(memory_format=torch.channels_last)  # as photos are read from files
    prepare, before = Prepare(IMAGENET.mean, IMAGENET.std), last.clone()
    expected = (x.double() / 255 - torch.tensor(IMAGENET.mean, dtype=torch.float64).view(3, 1, 1)) / torch.tensor(
        IMAGENET.std, dtype=torch.float64).view(3, 1, 1)
    assert torch.equal(prepare(last), prepare(x)) and prepare(last).stride() == prepare(x).stride()
    torch.testing.assert_close(prepare(last).double(), expected, rtol=0, atol=1e-6)
    assert torch.equal(last, before)


def test_a_stream_becomes_what_the_weights_want():
    given = stream(images(), mean=(0.5,), std=(0.25,))
    made = as_inputs(given, 31, 3, IMAGENET, normalize=True)
    assert made.input_shape == (3, 31, 31) and made.tests.x.shape == (3, 3, 31, 31)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET.mean, IMAGENET.std))
    torch.testing.assert_close(made.tests.x, (Prepare(size=31)(images()) - mean) / std)
    assert made.fingerprint != given.fingerprint and "mean 0.485 0.456 0.406" in made.notes[-1]
    kept = as_inputs(given, None, 3, IMAGENET, normalize=False)
    assert kept.prepare.mean == (0.5,) and "normalized by mean [0.5], as the benchmark's options say" in kept.notes[0]
    assert as_inputs(given, None, 3, None, normalize=False) is given
    gray = as_inputs(stream(images(channels=1)), None, 3, None, normalize=False)
    assert gray.input_shape == (3, 20, 20) and torch.equal(gray.tests.x[:, 0], gray.tests.x[:, 2])
    with pytest.raises(SpecError, match="samples are no images"):
        as_inputs(stream(torch.rand(3, 12)), 31, None, None, normalize=False)
    with pytest.raises(DataError, match=r"not in \[0, 1\].*normalize = none"):
        as_inputs(stream(images().float()), None, None, IMAGENET, normalize=True)


@pytest.mark.parametrize(("height", "width", "size"), [(20, 20, 24), (20, 20, 8), (40, 13, 16), (13, 40, None)])
@pytest.mark.parametrize(("written", "mode"), [
    ("random-resized-crop", InterpolationMode.BICUBIC),
    ("random-resized-crop:0.05:bilinear", InterpolationMode.BILINEAR)])
def test_a_random_part_is_the_one_that_torchvision_would_cut_out(height, width, size, written, mode):
    augment = find_augmentation(written).sized(size)
    x = images(64, height, width)
    draws = augment.draw(64, torch.Generator().manual_seed(1))
    out = augment(x, draws)
    shape = [height, width] if size is None else [size, size]
    assert out.dtype == torch.uint8 and list(out.shape[2:]) == shape
    boxes = augment.draw_boxes(draws, height, width).tolist()
    for one, box, last, ours in zip(x, boxes, draws[:, -1], out, strict=True):
        part = TF.resized_crop(one, *box, shape, mode, antialias=True)
        theirs = TF.hflip(part) if last < 0.5 else part
        assert (ours.int() - theirs.int()).abs().max() <= 1


@pytest.mark.parametrize(("height", "width"), [(32, 32), (60, 10)])
@pytest.mark.parametrize("smallest", [0.08, 0.05, 0.5])
def test_parts_have_the_shares_that_torchvision_draws(height, width, smallest):
    augment = find_augmentation(f"random-resized-crop:{smallest}:")
    assert augment.interpolation is None and (augment == AUGMENTATIONS["random-resized-crop"]) == (smallest == 0.08)
    ours = augment.draw_boxes(augment.draw(4000, torch.Generator().manual_seed(0)), height, width).double()
    torch.manual_seed(0)
    image = torch.zeros(1, height, width)
    theirs = torch.tensor([RandomResizedCrop.get_params(image, [smallest, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)])
    deviation = theirs.double().std(0) / 4000**0.5
    assert ((ours.mean(0) - theirs.double().mean(0)).abs() <= 5 * deviation + 1e-9).all()
    assert (ours[:, 0] + ours[:, 2] <= height).all() and (ours[:, 1] + ours[:, 3] <= width).all()


def test_the_old_spellings_of_augment_are_the_same_trial():
    by_truth = [CIFAROptions(augment=value) for value in (True, "crop-flip", False, "none")]
    assert [o.model_dump()["augment"] for o in by_truth] == [True, True, False, False]
    assert CIFAROptions(augment="random-resized-crop").model_dump()["augment"] == "random-resized-crop"
    assert CIFAROptions.model_validate(by_truth[0].model_dump()).augment == "crop-flip"


def test_options_of_random_crops_need_such_crops():
    crops = CIFAROptions(augment="random-resized-crop", crop_scale=0.05, crop_interpolation="bilinear")
    assert crops.augmentation == "random-resized-crop:0.05:bilinear"
    assert CIFAROptions(augment="random-resized-crop").augmentation == "random-resized-crop"
    assert (CIFAROptions().augmentation, CIFAROptions(augment="none").augmentation) == ("crop-flip", "")
    assert not {"crop_scale", "crop_interpolation"} & set(CIFAROptions(augment="random-resized-crop").model_dump())
    for option in ({"crop_scale": 0.05}, {"crop_interpolation": "bicubic"}):
        with pytest.raises(ValidationError, match=f"{next(iter(option))} is for random resized crops, and augment = "
                                                  "crop-flip; add augment=random-resized-crop"):
            CIFAROptions(**option)


def test_photos_of_several_sizes_are_brought_to_one(tmp_path):
    def loaded(options):
        name = "helpers.tiny_benchmarks:photos"
        full = discover().benchmark(name).options.model_validate(options).model_dump()
        return load_stream(Resolved(name=name, options=full), "task", 0, tmp_path, discover())

    made = loaded({"size": 16})
    assert made.input_shape == (3, 16, 16) and made.tasks[1].train.x.dtype == torch.uint8
    assert made.notes == ("photos of several sizes were brought to 16 x 16 pixels",
                          *[n for n in made.notes if "item by item" in n])
    first = np.random.default_rng(0).integers(64, 192, (20, 26, 3), np.uint8)
    scaled = TF.center_crop(TF.resize(Image.fromarray(first), 16, InterpolationMode.BICUBIC), [16, 16])
    assert (made.tasks[0].train.x[0].int() - TF.pil_to_tensor(scaled).int()).abs().max() <= 2
    with pytest.raises(DataError, match=r"photos are brought to the size that the model, or the benchmark, is given"):
        loaded({})


def test_the_size_of_photos_is_the_given_one_if_a_function_returns_the_same_benchmark_again(tmp_path, monkeypatch):
    import_avalanche()
    once = tiny_benchmarks.photos()
    setattr(once, LAYOUT, Layout(class_names=tuple("abcd")))
    monkeypatch.setattr(tiny_benchmarks, "photos", lambda: once)
    for size in (16, 12):
        read = load_stream(Resolved(name="helpers.tiny_benchmarks:photos", options={"size": size}), "task", 0,
                           tmp_path, discover())
        assert read.input_shape == (3, size, size) and read.tasks[0].class_names == ("a", "b")


def test_what_images_were_made_of_is_told_where_their_size_changed():
    notes = {side: as_inputs(stream(images()), side, None, None, normalize=False).notes for side in (20, 31)}
    assert notes == {20: ("inputs: 20 x 20 pixels",), 31: ("inputs: 31 x 31 pixels, made of 20 x 20",)}
