"""Changed views of images: flipped and shifted, the same ones whenever and in whatever order they are asked for."""

import numpy as np
from numpy.typing import NDArray

from meedge_ray.api.elastic_model import Augmentation
from meedge_ray.domain.errors import InvalidInputError
from meedge_ray.train.samples import Raw

_WHERE = "spec.cultivation.augmentation"
_IMAGE_CHANNELS = (1, 3, 4)
_IMAGE_DIMENSIONS = 3


def check_augmentation(augmentation: Augmentation, sample_shape: tuple[int, ...]) -> None:
    """Refuse what cannot be augmented.

    Raises:
        InvalidInputError: a sample is no image [C, H, W] of 1, 3 or 4 channels, or neither flip nor shift is asked for.
    """
    if len(sample_shape) != _IMAGE_DIMENSIONS or sample_shape[0] not in _IMAGE_CHANNELS:
        raise InvalidInputError(
            f"flips and shifts are for images of 1, 3 or 4 channels; a sample has shape {sample_shape}",
            where=_WHERE,
            do="Leave it out",
        )
    if not augmentation.flip and not augmentation.shift_pixels:
        raise InvalidInputError(
            "every view would be the image itself", where=_WHERE, do="Set flip or shiftPixels, or leave it out"
        )


def augmented(images: Raw, indices: NDArray[np.int64], *, augmentation: Augmentation, seed: int, view: int) -> Raw:
    """Return one further view of images: each mirrored left and right by chance, then shifted, its edges mirrored.

    Args:
        images: [N, C, H, W] of any numbers.
        indices: [N] their places in the split. An image's change depends on seed, view and this alone.
        augmentation: what may be drawn.
        seed: of the draws.
        view: 1 or more; view 0 is the images themselves.

    Returns:
        An array of the same shape and type.
    """
    height, width = images.shape[-2:]
    margin = augmentation.shift_pixels
    rows, columns = (np.pad(np.arange(side), margin, mode="reflect") for side in (height, width))
    result = np.empty_like(images)
    for place, index in enumerate(indices):
        random = np.random.default_rng((seed, view, int(index)))
        top, left = random.integers(0, 2 * margin + 1, 2)
        flipped = augmentation.flip and random.random() < 0.5
        seen_columns = columns[left : left + width]
        if flipped:
            seen_columns = seen_columns[::-1]
        result[place] = images[place][:, rows[top : top + height, None], seen_columns]
    return result
