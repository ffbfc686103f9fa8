"""Training pictures moved by a pixel each way, to have more of them."""

import numpy as np

from jaxnet.training.data import load
from jaxnet.training.data.dataset import Split
from jaxnet.training.data.pictures import expanded


def test_pictures_are_moved_up_down_left_and_right_and_zeros_move_in():
    x = np.arange(1, 13, dtype=np.float32).reshape(1, 3, 4, 1)
    moved, labels = expanded(Split(x, np.array([7])), 1)
    up, down, left, right = (np.zeros((3, 4)) for _ in range(4))
    picture = x[0, ..., 0]
    up[:-1], down[1:], left[:, :-1], right[:, 1:] = picture[1:], picture[:-1], picture[:, 1:], picture[:, :-1]
    np.testing.assert_array_equal(moved[..., 0], [picture, up, down, left, right])
    np.testing.assert_array_equal(labels, [7] * 5)


def test_only_the_training_pictures_are_expanded_flat_or_not():
    plain, more = load({"name": "digits"}), load({"name": "digits", "expand": 2})
    assert more.train.x.shape == (5 * len(plain.train.y), 64)
    np.testing.assert_array_equal(more.train.x[: len(plain.train.y)], plain.train.x)
    np.testing.assert_array_equal(more.train.y, np.tile(plain.train.y, 5))
    np.testing.assert_array_equal(more.test.x, plain.test.x)
    np.testing.assert_array_equal(more.validation.y, plain.validation.y)
    square = load({"name": "digits", "expand": 2, "flat": False})
    np.testing.assert_array_equal(square.train.x.reshape(more.train.x.shape), more.train.x)
    assert square.picture == (8, 8)
