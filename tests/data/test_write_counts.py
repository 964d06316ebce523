import torch

from clbench.data.samples import HostSamples, PermutedInputCache, PermutedSamples, Samples, WriteCounts


def parts():
    x, y = torch.arange(12.0).view(3, 4), torch.arange(3)
    return Samples(x, y, y), HostSamples(x, y, y), PermutedSamples(x, torch.tensor([1, 0, 3, 2]), y, y,
                                                                  PermutedInputCache())


def test_reading_samples_is_no_write():
    for samples in parts():
        writes = WriteCounts([samples])
        samples.x.add(1), samples.take(torch.tensor([0, 2])).x.mul_(2), [part.y.add(1) for part in samples.chunks(2)]
        assert not writes.differ


def test_writes_to_inputs_labels_and_their_views_are_counted():
    for samples in parts():
        for write in (lambda s: s.x.mul_(2), lambda s: s.y.sub_(1), lambda s: s.y[1:].zero_()):
            writes = WriteCounts([samples])
            assert not writes.differ
            write(samples)
            assert writes.differ
