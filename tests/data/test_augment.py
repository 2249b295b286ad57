"""Augmentation of whole batches against slow loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lpss_cli.data import AUGMENTS
from lpss_cli.data import augment as augmentation
from lpss_cli.errors import InputError


def pictures(n: int = 12, channels: int = 2, height: int = 9, width: int = 7) -> torch.Tensor:
    return torch.rand(n, channels, height, width, generator=torch.Generator().manual_seed(0)) + 1


def test_crop_equals_the_slow_one():
    x = pictures()
    g = torch.Generator().manual_seed(5)
    top, left = (torch.randint(0, 7, (len(x),), generator=g) for _ in range(2))
    got = augmentation.reflect_crop(3)(x, torch.Generator().manual_seed(5))
    for i, image in enumerate(x.numpy()):
        padded = np.pad(image, ((0, 0), (3, 3), (3, 3)), mode="reflect")
        wanted = padded[:, top[i] : top[i] + 9, left[i] : left[i] + 7]
        assert np.array_equal(got[i].numpy(), wanted)
    assert len({*zip(top.tolist(), left.tolist(), strict=True)}) > 6  # each its own offset


def test_flip_equals_the_slow_one():
    x = pictures(40)
    chosen = torch.randint(0, 2, (40,), generator=torch.Generator().manual_seed(5))
    got = augmentation.hflip()(x, torch.Generator().manual_seed(5))
    for i, image in enumerate(x.numpy()):
        assert np.array_equal(got[i].numpy(), image[:, :, ::-1] if chosen[i] else image)
    assert 5 < int(chosen.sum()) < 35


@pytest.mark.parametrize("size", [0, 1, 3, 6])
def test_cutout_equals_the_slow_one(size):
    x = pictures(60)
    g = torch.Generator().manual_seed(5)
    rows = torch.randint(0, 9, (60,), generator=g).tolist()
    columns = torch.randint(0, 7, (60,), generator=g).tolist()
    got = augmentation.cutout(size)(x, torch.Generator().manual_seed(5))
    for i, image in enumerate(x.clone()):
        top, left = rows[i] - size // 2, columns[i] - size // 2
        image[:, max(top, 0) : max(top + size, 0), max(left, 0) : max(left + size, 0)] = 0
        assert torch.equal(got[i], image)
    # Centers go up to the border: some squares are clipped and some are whole.
    holes = (got == 0).sum(dim=(1, 2, 3)) // 2
    assert int(holes.max()) == size**2
    assert size < 3 or int(holes.min()) < size**2
    assert (x > 0).all()  # the input is left alone


def test_policies():
    x = pictures(8, 1, 28, 28)
    by_hand = augmentation.compose(
        augmentation.reflect_crop(4), augmentation.hflip(), augmentation.cutout(6)
    )
    fashion, cifar = augmentation.policy("fashion"), augmentation.policy("cifar")
    assert fashion is not None
    assert cifar is not None
    seeded = (torch.Generator().manual_seed(1) for _ in range(3))
    wanted, got, uncut = (
        step(x, g) for step, g in zip((by_hand, fashion, cifar), seeded, strict=True)
    )
    assert torch.equal(wanted, got)
    assert (uncut > 0).all()
    assert torch.equal(got[got > 0], uncut[got > 0])
    assert augmentation.policy("none") is None
    with pytest.raises(InputError, match="no augmentation called 'cifer'"):
        augmentation.policy("cifer")
    with pytest.raises(InputError, match="needs images of more than 4 pixels"):
        augmentation.for_shape("cifar", (3, 4, 4))


def test_the_choices_of_the_option_are_the_policies():
    assert tuple(augmentation.POLICIES) == AUGMENTS
