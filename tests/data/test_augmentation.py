import torch
import torchvision.transforms.functional as TF

from clbench.core.hookspecs import StrategyInfo
from clbench.core.registry import discover
from clbench.data.prepare import CropFlip
from clbench.data.samples import Samples
from clbench.strategy.base import Strategy
from clbench.testing.tiny import bench, tiny_stream
from clbench.training.sampling import BatchSampler


def images(count, seed=0, channels=3, side=8):
    return torch.randint(0, 256, (count, channels, side, side), generator=torch.Generator().manual_seed(seed),
                         dtype=torch.uint8)


def test_each_image_is_what_torchvision_makes_of_it():
    x, generator = images(40), torch.Generator().manual_seed(1)
    augment = CropFlip()
    draws = augment.draw(len(x), generator)
    assert draws[:, :2].min() == 0 and draws[:, :2].max() == 8 and set(draws[:, 2].tolist()) == {0, 1}
    before = x.clone()
    out = augment(x, draws)
    assert torch.equal(x, before) and out.dtype == torch.uint8
    for image, got, (row, column, flip) in zip(x, out, draws.tolist(), strict=True):
        wanted = TF.crop(TF.pad(image, [4]), row, column, 8, 8)
        assert torch.equal(got, TF.hflip(wanted) if flip else wanted)


def test_identical_images_come_out_different():
    out = CropFlip()(images(1).expand(64, -1, -1, -1), CropFlip().draw(64, torch.Generator().manual_seed(0)))
    assert len({bytes(image.numpy().tobytes()) for image in out.contiguous()}) > 40


def test_batches_of_floats_work_too_and_lie_channels_last():
    x = images(5).float()
    out = CropFlip()(x, torch.tensor([[4, 4, 0]]).expand(5, -1))
    assert torch.equal(out, x) and out.is_contiguous(memory_format=torch.channels_last)


def test_what_is_replayed_does_not_change_how_new_samples_are_augmented():
    part = Samples(images(12, channels=1), torch.arange(12) % 2, torch.zeros(12, dtype=torch.int64))
    naive, er = (bench(discover().strategy(name), {}, "class").strategy for name in ("naive", "er"))
    plain, replaying = (BatchSampler(12, 4, seed=3, task=0, augment=CropFlip()) for _ in range(2))
    for step in range(6):
        one, other = plain.next_prepared(naive, part), replaying.next_prepared(er, part)
        assert len(other.y) == len(one.y) + min(4 * step, 4)
        assert torch.equal(one.x, other.x[:4])
    again = BatchSampler(12, 4, seed=3, task=0, augment=CropFlip())
    first = [again.next_prepared(naive, part).x for _ in range(6)]
    assert not torch.equal(first[0], first[3])  # the second pass meets other crops in another order
    assert torch.equal(first[-1], one.x)


def test_memory_keeps_images_as_they_were():
    part = Samples(images(12, channels=1), torch.arange(12) % 2, torch.zeros(12, dtype=torch.int64))
    er = bench(discover().strategy("er"), {}, "class").strategy
    BatchSampler(12, 12, seed=0, task=0, augment=CropFlip()).next_prepared(er, part)
    kept = {row.numpy().tobytes() for row in er.memory_x}
    assert kept == {row.numpy().tobytes() for row in part.x}


def test_a_stream_without_augmentation_has_none():
    assert tiny_stream("task").augment is None
    b = bench(StrategyInfo("x", Strategy, ""), {}, "task")
    part = b.stream.tasks[0].train
    batch = BatchSampler(len(part), 8, 0, 0).next_prepared(b.strategy, part)
    assert any(torch.equal(batch.x[0], b.stream.prepare(x[None])[0]) for x in part.x)
