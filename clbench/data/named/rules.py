"""Rules by which repositories divide photos into training and test, over the order of torchvision's ImageFolder."""

from __future__ import annotations

from collections.abc import Sequence

from clbench.data.own.samples import Labelled, PhotoFiles

TRAIN_SHARE = 0.8


def random_rows(count: int, seed: int) -> tuple[list[int], list[int]]:
    """Return the rows that `torch.utils.data.random_split` gives to training (80%) and to test, with torch's seed."""
    import torch

    rows: list[int] = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
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
