"""Options of photos: to which size they are brought, how, and whether they stay in their files."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from clbench.core.options import Options


class PixelOptions(Options):
    """Options of data that may be images."""

    normalize: Literal["none", "model"] = Field("none", description="none: pixels in [0, 1], numbers as they are; "
                                                "model: as the model's weights were trained, the default where they "
                                                "say how")
    augment: Literal["none", "crop-flip", "random-resized-crop"] = Field(
        "none", description="how training images are augmented, drawn again for each use: nothing; a random crop (4 "
        "pixels of padding) and flip; a random part, resized, and flip")


class PhotoOptions(PixelOptions):
    """Options of photos of any size."""

    LATER: ClassVar[tuple[str, ...]] = ("resize", "crop", "interpolation")

    size: int | None = Field(None, ge=1, description="pixels along each side to which photos are brought: the shorter "
                             "side resized, then center-cropped; none: the model's size, else 32 unless all photos are "
                             "of one size of at most 64")
    resize: int | None = Field(None, ge=1, description="pixels to which the shorter side is resized before the middle "
                               "is cut out (crop), exactly as torchvision does it; takes the place of size")
    crop: int | None = Field(
        None, ge=1, description="pixels along each side of the middle that is cut out after resize")
    interpolation: Literal["bicubic", "bilinear"] = Field("bicubic", description="how photos are resized")

    @model_validator(mode="after")
    def _one_size(self) -> PhotoOptions:
        """Refuse a resize without a crop, a crop that is larger than what it is cut out of, and two sizes."""
        if self.resize is None or self.crop is None:
            if self.resize != self.crop:
                raise ValueError("resize and crop go together, as in resize=256 and crop=224; give both or neither")
        elif self.crop > self.resize:
            raise ValueError(f"crop = {self.crop} is larger than resize = {self.resize}; choose a smaller crop")
        elif self.size is not None:
            raise ValueError("give size, or resize and crop, not both")
        return self


class StoredPhotoOptions(PhotoOptions):
    """Options of photos in files of their own."""

    LATER: ClassVar[tuple[str, ...]] = ("read",)

    read: Literal["memory", "files"] = Field(
        "memory", description="memory: all photos are decoded once and held in memory; files: they are decoded "
        "whenever a batch needs them, so there may be more than fit in memory, and random resized crops are cut out of "
        "the original photos")
