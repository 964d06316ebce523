from itertools import pairwise

import numpy as np
import pytest

from clbench.report.figures.labels import Box, place, sample_polyline, spread

PAGE = Box(0, 0, 400, 300)
NOTHING = np.zeros((0, 2)), np.zeros(0)


def overlap(a, b):
    return (max(0, min(a.x + a.width, b.x + b.width) - max(a.x, b.x))
            * max(0, min(a.y + a.height, b.y + b.height) - max(a.y, b.y)))


def test_a_lone_label_stands_right_of_its_anchor():
    box, = place([(100, 100)], [(40, 10)], *NOTHING, PAGE)
    assert box.x > 100 and box.y + box.height / 2 == pytest.approx(100)


def test_labels_keep_clear_of_one_another_of_obstacles_and_of_the_edge():
    random = np.random.default_rng(0)
    anchors = [*map(tuple, random.uniform((20, 20), (380, 280), (12, 2))), (395, 150), (200, 295)]
    obstacles = sample_polyline([(0, 40), (400, 40)])
    boxes = place(anchors, [(55, 11)] * 14, obstacles, np.full(len(obstacles), 5.0), PAGE)
    for i, box in enumerate(boxes):
        assert overlap(box, PAGE) == pytest.approx(55 * 11)
        assert not box.y < 40 < box.y + box.height
        assert all(overlap(box, other) == 0 for other in boxes[i + 1:])
        own, *_ = np.argsort([np.hypot(*np.subtract(a, box.nearest(*a))) for a in anchors])
        assert own == i


def test_points_along_a_line_are_close():
    points = sample_polyline([(0, 0), (10, 0), (10, 7)])
    assert points[0].tolist() == [0, 0] and points[-1].tolist() == [10, 7]
    assert np.linalg.norm(np.diff(points, axis=0), axis=1).max() <= 3
    assert sample_polyline([(1, 2)]).tolist() == [[1, 2]]


def test_stacked_items_move_as_little_as_they_must():
    assert spread([10, 50, 90], [12, 12, 12]) == [10, 50, 90]
    assert spread([10, 10], [12, 12]) == pytest.approx([4, 16])
    assert spread([10, 10, 50], [12, 12, 12], 0, 100) == pytest.approx([6, 18, 50])
    assert spread([50, 98, 99], [12, 12, 12], 0, 100) == pytest.approx([50, 82, 94])
    random = np.random.default_rng(1)
    for _ in range(50):
        wanted, heights = random.uniform(0, 60, 8), random.uniform(5, 20, 8)
        found = spread(wanted.tolist(), heights.tolist())
        order = np.argsort(wanted)
        for a, b in pairwise(order):
            assert found[b] - found[a] >= (heights[a] + heights[b]) / 2 - 1e-9
