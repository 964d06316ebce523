"""`PhotoSamples`: labeled photos that stay in their files and are decoded batch by batch, ahead of their use."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from clbench.core.device import send
from clbench.core.errors import SpecError
from clbench.data.photo_files import Crop, Photos, Reading, decode_in_order
from clbench.data.prepare import Augmentation, RandomResizedCrop
from clbench.data.samples import Samples

UNREAD = ("the photos stay in their files (read = files), and this method needs all of a task's inputs at once: choose "
          "read=memory, or another method")


class Request(NamedTuple):
    """A batch to decode: the rows of its samples, int64 [M].

    If `crop` and its random `draws` are given, crops of the original photos are decoded. If `whole`, the whole photos
    are decoded.
    """

    rows: Tensor
    crop: RandomResizedCrop | None = None
    draws: Tensor | None = None
    whole: bool = True


class PhotoSamples(Samples):
    """Samples whose inputs are photos in files; labels and tasks are on the device, to which batches are copied."""

    def __init__(self, photos: Photos, y: Tensor, tasks: Tensor) -> None:
        """Store photos [N, C, H, W], which are not decoded, and labels and tasks [N]."""
        for name, value in (("photos", photos), ("y", y), ("tasks", tasks)):
            object.__setattr__(self, name, value)

    photos: Photos

    def __repr__(self) -> str:
        """Return a text without the inputs."""
        return f"{type(self).__name__}({tuple(self.photos.shape)})"

    @property
    def x(self) -> Tensor:
        """Raise an error, because all inputs together may not fit in memory.

        Raises:
            SpecError: always.
        """
        raise SpecError(UNREAD)

    @property
    def index_device(self) -> torch.device:
        """Return the host."""
        return torch.device("cpu")

    def begin(self, request: Request) -> Reading:
        """Start to decode a batch."""
        photos, crop = self.photos[request.rows], None
        if request.crop is not None and request.draws is not None:
            height, width = (side[:, None] for side in photos.sizes.long().unbind(1))
            side = request.crop.size
            crop = Crop(request.crop.draw_boxes(request.draws, height, width), request.crop.draw_flips(request.draws),
                        side or photos.format.height, side or photos.format.width,
                        request.crop.interpolation or photos.format.interpolation)
        return Reading(photos, crop, request.whole, pinned=self.y.device.type == "cuda")

    def reading(self, request: Request) -> Reading:
        """Decode a batch and return it."""
        return self.begin(request).finished()

    def take(self, index: Tensor) -> Samples:
        """Return the samples at `index` (int64 [M]), decoded, on the device.

        Raises:
            DataError: a photo cannot be read; the error names the file.
        """
        return self._labeled(self.reading(Request(index)).images, index)

    def take_crops(self, request: Request) -> tuple[Samples, Tensor]:
        """Return a batch of samples and their random crops [M, C, height, width], on the device.

        If whole photos are not needed, the inputs of the samples are the crops.
        """
        reading = self.reading(request)
        crops = send(reading.crops, self.y.device)
        return self._labeled(reading.images if request.whole else crops, request.rows), crops

    def _labeled(self, x: Tensor, index: Tensor) -> Samples:
        sent_index = send(index, self.y.device)
        return Samples(send(x, self.y.device), self.y[sent_index], self.tasks[sent_index])

    def restricted(self, index: Tensor) -> PhotoSamples:
        """Return only the samples at `index`, without decoding them."""
        sent_index = send(index, self.y.device)
        return PhotoSamples(self.photos[index], self.y[sent_index], self.tasks[sent_index])

    def subset(self, limit: int | None, generator: torch.Generator) -> Samples:
        """Return `limit` samples drawn without replacement; they are not decoded."""
        if limit is None or limit >= len(self):
            return self
        return self.restricted(torch.randperm(len(self), generator=generator)[:limit])

    def chunks(self, size: int, first: int = 0) -> Iterator[Samples]:
        """Yield decoded samples in order, `size` at a time; `first` is the index of the first chunk to yield."""
        for number, x in enumerate(self.photos.read_chunks(size, first), start=first):
            rows = slice(number * size, number * size + len(x))
            yield Samples(send(x, self.y.device), self.y[rows], self.tasks[rows])

    def relabeled(self, y: Tensor, tasks: Tensor) -> PhotoSamples:
        """Return the same photos with other labels and tasks [N]."""
        return PhotoSamples(self.photos, y, tasks)

    def joined(self, others: Sequence[Samples]) -> Samples:
        """Return these samples and others as one; photos stay in their files.

        Raises:
            SpecError: other samples are held in memory.
        """
        parts = [self, *(part for part in others if isinstance(part, PhotoSamples))]
        if len(parts) <= len(others):
            raise SpecError(UNREAD)
        return PhotoSamples(Photos.concat([part.photos for part in parts]), torch.cat([part.y for part in parts]),
                            torch.cat([part.tasks for part in parts]))


def crops_originals(augment: Augmentation | None, samples: Samples) -> bool:
    """Return whether new samples are cropped from the original photos, and not augmented like replayed samples."""
    return isinstance(samples, PhotoSamples) and isinstance(augment, RandomResizedCrop)


class PhotosAhead(PhotoSamples):
    """Photos whose next batches are decoded ahead, in the order of the requests."""

    def __init__(self, samples: PhotoSamples, requests: Iterator[Request]) -> None:
        """Store the requests, in the order in which the batches will be used."""
        super().__init__(samples.photos, samples.y, samples.tasks)
        object.__setattr__(self, "readings", decode_in_order(map(samples.begin, requests)))

    readings: Generator[Reading, None, None]

    def reading(self, request: Request) -> Reading:
        """Return the next batch, which must be the one that was requested ahead."""
        reading = next(self.readings)
        if not torch.equal(reading.photos.rows, self.photos.rows[request.rows]):
            raise RuntimeError("another batch of photos was decoded ahead than the one that is trained; this is a bug "
                               "in clbench")
        return reading


@contextmanager
def decode_ahead(samples: Sequence[Samples], requests: Sequence[Iterator[Request]]) -> Iterator[list[Samples]]:
    """Yield samples whose photos in files are decoded ahead of their use; all other samples are unchanged.

    Args:
        samples: the samples of each replica.
        requests: the batches that each replica will request, in order.
    """
    samples_ahead = [PhotosAhead(part, ahead) if isinstance(part, PhotoSamples) else part
                     for part, ahead in zip(samples, requests, strict=True)]
    try:
        yield samples_ahead
    finally:
        for part in samples_ahead:
            if isinstance(part, PhotosAhead):
                part.readings.close()
