"""Place labels in a figure so that they cover neither each other nor the drawing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from statistics import fmean

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
_SIDES = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1))  # in order of preference
_GAPS = (8.5, 12.0, 16.0, 24.0, 34.0, 46.0)
_PASSES = 4
_STEP, _MARGIN = 3.0, 1.5  # in points: between the samples of a line, and around a box


@dataclass(frozen=True)
class Box:
    """A rectangle in points. (x, y) is its lower left corner."""

    x: float
    y: float
    width: float
    height: float

    def nearest(self, x: float, y: float) -> tuple[float, float]:
        """Return the box's point that is nearest to (x, y)."""
        return min(max(x, self.x), self.x + self.width), min(max(y, self.y), self.y + self.height)


def sample_polyline(points: Sequence[tuple[float, float]]) -> Floats:
    """Return points (N, 2) on a polyline, at most `_STEP` apart."""
    segments = [np.linspace(a, b, max(2, math.ceil(math.dist(a, b) / _STEP) + 1)) for a, b in pairwise(points)]
    return np.concatenate(segments) if segments else np.asarray(points, dtype=np.float64).reshape(-1, 2)


def place(anchors: Sequence[tuple[float, float]], sizes: Sequence[tuple[float, float]], obstacles: Floats,
          weights: Floats, bounds: Box) -> list[Box]:
    """Return a box for each label, near its anchor and clear of obstacles and of the other labels as far as possible.

    In each of a few passes, each label takes the cheapest of the positions around its anchor, given the other labels.

    Args:
        anchors: the point that each label belongs to, (x, y) in points.
        sizes: (width, height) of each label.
        obstacles: (N, 2), points that a label should not cover.
        weights: (N,), the cost of covering each obstacle.
        bounds: the area in which labels should stay.
    """
    position_costs = np.asarray([0.25 * gap + 0.4 * rank for gap, rank in product(_GAPS, range(len(_SIDES)))])
    options = [_boxes_around(anchor, size) for anchor, size in zip(anchors, sizes, strict=True)]
    page = np.asarray([bounds.x, bounds.y, bounds.x + bounds.width, bounds.y + bounds.height])
    fixed = [position_costs + _weigh_covered(boxes, obstacles, weights) + 5 * (_area(boxes) - _overlap(boxes, page))
             + _weigh_ambiguous(boxes, i, np.asarray(anchors)) for i, boxes in enumerate(options)]
    chosen: dict[int, Floats] = {}
    for _ in range(_PASSES):
        for i, boxes in enumerate(options):
            overlaps = sum((_overlap(boxes, other) for j, other in chosen.items() if j != i), np.zeros(len(boxes)))
            chosen[i] = boxes[int(np.argmin(fixed[i] + 0.5 * overlaps))]
    return [Box(float(x0), float(y0), float(x1 - x0), float(y1 - y0)) for x0, y0, x1, y1 in chosen.values()]


def spread(wanted: Sequence[float], heights: Sequence[float], low: float = -math.inf,
           high: float = math.inf) -> list[float]:
    """Return centers near the preferred ones, in their order, such that stacked items of these heights do not overlap.

    Neighbors that would overlap are merged into a block. Its center is the mean preference of its items, moved such
    that the block lies between `low` and `high`.
    """
    def block(items: list[int]) -> tuple[list[int], float, float]:
        half = sum(heights[i] for i in items) / 2
        return items, max(low + half, min(high - half, fmean(wanted[i] for i in items))), half

    blocks: list[tuple[list[int], float, float]] = []  # items, center, half the height
    for i in sorted(range(len(wanted)), key=lambda i: wanted[i]):
        last = block([i])
        while blocks and blocks[-1][1] + blocks[-1][2] > last[1] - last[2]:
            last = block(blocks.pop()[0] + last[0])
        blocks.append(last)
    centers = [0.0] * len(wanted)
    for items, center, half in blocks:
        bottom = center - half
        for i in items:
            centers[i] = bottom + heights[i] / 2
            bottom += heights[i]
    return centers


def _boxes_around(anchor: tuple[float, float], size: tuple[float, float]) -> Floats:
    """Return the boxes (K, 4: left, bottom, right, top) that a label may take around its anchor."""
    (x, y), (width, height) = anchor, size
    boxes = []
    for gap in _GAPS:
        for dx, dy in _SIDES:
            reach = gap * (0.75 if dx and dy else 1.0)
            left, bottom = x + dx * reach + width * (dx - 1) / 2, y + dy * reach + height * (dy - 1) / 2
            boxes.append((left, bottom, left + width, bottom + height))
    return np.asarray(boxes)


def _area(boxes: Floats) -> Floats:
    area: Floats = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return area


def _overlap(boxes: Floats, other: Floats) -> Floats:
    """Return the area that each box shares with another."""
    sides = np.minimum(boxes[:, 2:], other[2:]) - np.maximum(boxes[:, :2], other[:2])
    area: Floats = np.prod(np.maximum(sides, 0.0), axis=1)
    return area


def _weigh_covered(boxes: Floats, obstacles: Floats, weights: Floats) -> Floats:
    """Return the total weight of the obstacles in each box and its margin."""
    low, high = boxes[:, None, :2] - _MARGIN, boxes[:, None, 2:] + _MARGIN
    inside = ((obstacles > low) & (obstacles < high)).all(axis=2)
    weight: Floats = inside @ weights
    return weight


def _weigh_ambiguous(boxes: Floats, anchor: int, anchors: Floats) -> Floats:
    """Return a cost for boxes that are at least about as close to another label's anchor as to their own.

    Args:
        boxes: (K, 4), the boxes that a label may take.
        anchor: index of the label's own anchor.
        anchors: (N, 2), the anchors of all labels.
    """
    nearest = np.clip(anchors, boxes[:, None, :2], boxes[:, None, 2:])
    distances = np.linalg.norm(nearest - anchors, axis=2)
    cost: Floats = 12.0 * np.clip(1.6 - np.delete(distances, anchor, axis=1) / distances[:, [anchor]],
                                  0.0, 1.0).sum(axis=1)
    return cost
