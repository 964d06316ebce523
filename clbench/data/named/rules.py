"""Rules by which repositories divide photos into training and test, over the order of torchvision's ImageFolder."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from clbench.data.own.samples import Labelled, PhotoFiles

TRAIN_SHARE = 0.8


def random_rows(count: int, seed: int) -> tuple[list[int], list[int]]:
    """Return the rows that `torch.utils.data.random_split` gives to training (80%) and to test, with torch's seed.

    The permutation is that of `torch.randperm` on the CPU: a Fisher-Yates shuffle by the same Mersenne Twister. It is
    written out, because data are checked where torch is not imported.
    """
    draws = np.random.RandomState(seed).randint(0, 2**32, count, np.uint32).tolist()
    rows = list(range(count))
    for place in range(count - 1):
        other = place + draws[place] % (count - place)
        rows[place], rows[other] = rows[other], rows[place]
    train = int(TRAIN_SHARE * count)
    return rows[:train], rows[train:]


def stratified_rows(labels: Sequence[str], seed: int) -> tuple[list[int], list[int]]:
    """Return the rows of `train_test_split(test_size=0.2, stratify=labels, random_state=seed)` of scikit-learn."""
    from sklearn.model_selection import train_test_split

    train, test = train_test_split(range(len(labels)), test_size=0.2, stratify=labels, random_state=seed)
    return train, test


def chosen(photos: PhotoFiles, rows: Sequence[int]) -> PhotoFiles:
    """Return some photos, in the order of rows."""
    labelled = photos.labelled
    return PhotoFiles(tuple(photos.files[row] for row in rows),
                      Labelled([labelled.labels[row] for row in rows],
                               None if labelled.tasks is None else [labelled.tasks[row] for row in rows],
                               classes=labelled.classes))
