"""Folders of synthetic photos: several sizes, gray and RGB, PNG and JPEG, some rotated by their EXIF orientation."""

import numpy as np
from PIL import Image

ORIENTATION = 0x0112


def write_photos(root, classes=4, each=20, smallest=20, largest=70, seed=0):
    """Write photos whose color depends on their class, in one folder per class, and return the parent folder."""
    generator = np.random.default_rng(seed)
    for c in range(classes):
        folder = root / f"class{c}"
        folder.mkdir(parents=True)
        for number in range(each):
            height, width = generator.integers(smallest, largest, 2)
            pixels = generator.integers(0, 150, (height, width, 3), np.uint8)
            pixels[..., c % 3] += np.uint8(100 if c < 3 else 50)
            image = Image.fromarray(pixels)
            if number % 7 == 3:
                image = image.convert("L")
            if number % 4 == 1:
                exif = Image.Exif()
                exif[ORIENTATION] = 6 if number % 8 == 1 else 8
                image.save(folder / f"{number}.jpg", exif=exif, quality=92)
            else:
                image.save(folder / f"{number}.png")
    return root


def upright(path):
    """Return an RGB photo with its EXIF orientation applied, using only Pillow."""
    image = Image.open(path)
    turn = {6: Image.Transpose.ROTATE_270, 8: Image.Transpose.ROTATE_90}.get(image.getexif().get(ORIENTATION))
    image = image if turn is None else image.transpose(turn)
    return image.convert("RGB")
