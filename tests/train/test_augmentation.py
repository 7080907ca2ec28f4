import numpy as np
import pytest

from meedge_ray.api.elastic_model import Augmentation
from meedge_ray.domain.errors import InvalidInputError
from meedge_ray.train.augmentation import augmented, check_augmentation

IMAGES = np.random.default_rng(0).integers(0, 255, (40, 3, 8, 6), np.uint8)
INDICES = np.arange(40)


def views(images: np.ndarray, indices: np.ndarray, view: int = 1, seed: int = 0, **fields: object) -> np.ndarray:
    return augmented(images, indices, augmentation=Augmentation.model_validate(fields), seed=seed, view=view)


def test_a_view_is_the_same_in_whatever_batches_it_is_made() -> None:
    whole = views(IMAGES, INDICES)
    order = np.random.default_rng(1).permutation(40)
    parts = [views(IMAGES[chosen], INDICES[chosen]) for chosen in np.array_split(order, 7)]
    assert np.array_equal(np.concatenate(parts), whole[order])


def test_other_views_and_seeds_give_other_images() -> None:
    first = views(IMAGES, INDICES)
    assert not np.array_equal(first, views(IMAGES, INDICES, view=2))
    assert not np.array_equal(first, views(IMAGES, INDICES, seed=1))
    assert not np.array_equal(first, IMAGES)


@pytest.mark.parametrize("kind", [np.uint8, np.float16, np.float32, np.bool_])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_shape_and_type_stay(kind: type, channels: int) -> None:
    images = np.zeros((5, channels, 7, 9), kind)
    changed = views(images, np.arange(5))
    assert changed.shape == images.shape
    assert changed.dtype == images.dtype


def test_a_flip_mirrors_left_and_right_about_half_of_the_images() -> None:
    changed = views(IMAGES, INDICES, shiftPixels=0)
    flipped = [np.array_equal(new, old[:, :, ::-1]) for new, old in zip(changed, IMAGES, strict=True)]
    same = [np.array_equal(new, old) for new, old in zip(changed, IMAGES, strict=True)]
    assert all(a or b for a, b in zip(flipped, same, strict=True))
    assert 10 < sum(flipped) < 30


def test_a_shift_moves_by_at_most_so_many_pixels_and_mirrors_the_edges() -> None:
    changed = views(IMAGES, INDICES, flip=False, shiftPixels=2)
    padded = np.pad(IMAGES, ((0, 0), (0, 0), (2, 2), (2, 2)), mode="reflect")
    seen = set()
    for place in range(len(IMAGES)):
        [shift] = [
            (top, left)
            for top in range(5)
            for left in range(5)
            if np.array_equal(changed[place], padded[place, :, top : top + 8, left : left + 6])
        ]
        seen.add(shift)
    assert len(seen) > 12


def test_a_shift_may_be_larger_than_the_image() -> None:
    assert views(IMAGES, INDICES, shiftPixels=32).shape == IMAGES.shape


@pytest.mark.parametrize("shape", [(22, 20, 20), (2, 8, 8), (3, 8), (64,)])
def test_what_is_no_image_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInputError, match=r"spec\.cultivation\.augmentation: flips and shifts are for images"):
        check_augmentation(Augmentation(), shape)


def test_views_that_change_nothing_are_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"spec\.cultivation\.augmentation: every view"):
        check_augmentation(Augmentation(flip=False, shiftPixels=0), (3, 8, 8))
