import numpy as np
import pytest
import torch
from PIL import Image

from tests.peers import peer
from vggkit.data.fashion_mnist import load
from vggkit.data.loading import Augmentation, cutmix, epoch_order
from vggkit.data.preprocessing import Preprocessing


@pytest.fixture(scope="module")
def images():
    return torch.from_numpy(load("fashion-mnist-sample").test_images[:50]).unsqueeze(1)


def plain(size, channels=1):
    return Preprocessing(size, channels, (0.0,) * channels, (1.0,) * channels)


@pytest.mark.parametrize("size", [28, 32, 96, 224, 20, 7])
def test_resizing_is_within_a_grey_level_of_pillows(images, size):
    """Pillow's bilinear resize is what torchvision's Resize does to an image."""
    ours = plain(size)(images)
    for image, x in zip(images, ours, strict=True):
        theirs = np.asarray(Image.fromarray(image[0].numpy()).resize((size, size), Image.Resampling.BILINEAR)) / 255
        assert np.abs(x[0].numpy() - theirs).max() <= 1 / 255 + 1e-6


def test_resizing_is_within_a_grey_level_of_torchvisions(images):
    peer("torchvision")
    from torchvision.transforms import v2

    for size in (224, 96, 32, 14):
        theirs = v2.functional.resize(images, [size, size], antialias=True).float() / 255
        assert (plain(size)(images) - theirs).abs().max() <= 1 / 255 + 1e-6


@pytest.mark.parametrize("shape", [(300, 400), (400, 300), (224, 224), (60, 333)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_cropping_is_torchvisions(shape, interpolation):
    """The shorter side to 64, the square of 56 in the middle; torchvision works on Pillow's image, and rounds."""
    peer("torchvision")
    from torchvision.transforms import CenterCrop, InterpolationMode, Resize

    pixels = torch.randint(0, 256, (3, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    smooth = torch.nn.functional.avg_pool2d(pixels.float(), 5, 1, 2).round().to(torch.uint8)
    image = Image.fromarray(smooth.permute(1, 2, 0).numpy())
    theirs = np.asarray(CenterCrop(56)(Resize(64, InterpolationMode(interpolation))(image))).transpose(2, 0, 1) / 255
    crop = Preprocessing(56, 3, (0.0,) * 3, (1.0,) * 3, resize="crop", crop_fraction=0.875, interpolation=interpolation)
    levels = 1 if interpolation == "bilinear" else 2  # Pillow cuts bicubic's overshoot off after each direction
    assert np.abs(crop(smooth.unsqueeze(0))[0].numpy() - theirs).max() <= levels / 255 + 1e-6


def test_other_values_than_it_is_for_are_refused():
    crop = Preprocessing(8, 1, (0.0,), (1.0,))
    with pytest.raises(ValueError, match="expected images as uint8, got torch.float32, try normalize"):
        crop(torch.zeros(1, 1, 8, 8))
    with pytest.raises(ValueError, match=r"expected images as floats in \[0, 1\], got torch.uint8"):
        crop.normalize(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))


def test_normalisation_is_what_it_says():
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    before = images.clone()
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 1.5)
    expected = torch.stack([(images[:, c].double() / 255 - mean[c]) / std[c] for c in range(3)], dim=1)
    x = Preprocessing(8, 3, mean, std)(images)
    torch.testing.assert_close(x.double(), expected, rtol=1e-5, atol=1e-6)
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images, before)


def test_grey_images_stay_channels_last_through_a_convolution(images):
    """One channel has ambiguous strides, which torch takes for contiguous."""
    convolution = torch.nn.Conv2d(1, 4, 3, padding=1).to(memory_format=torch.channels_last)
    x = plain(32)(images)
    assert convolution(x).is_contiguous(memory_format=torch.channels_last)
    assert not convolution(x).is_contiguous()
    torch.testing.assert_close(convolution(x), convolution(x.clone(memory_format=torch.contiguous_format)))


def test_preprocessing_round_trips_and_checks_itself():
    preprocessing = Preprocessing(32, 1, (0.286,), (0.353,))
    assert Preprocessing.from_json(preprocessing.to_json()) == preprocessing
    old = '{"image_size": 32, "channels": 1, "mean": [0.286], "std": [0.353]}'  # as version 0.1 wrote it
    assert Preprocessing.from_json(old) == preprocessing
    caffe = Preprocessing(
        8, 3, (1.0, 2.0, 3.0), (1.0,) * 3, order="bgr", scale=255.0, resize="crop", crop_fraction=0.5,
        interpolation="bicubic",
    )  # fmt: skip
    assert Preprocessing.from_json(caffe.to_json()) == caffe
    for field, value in (
        ("order", '"rbg"'),
        ("scale", "2"),
        ("resize", "[]"),
        ("crop_fraction", "1e-9"),
        ("test_flip", '"yes"'),
        ("colour", "1"),
    ):
        with pytest.raises(ValueError, match="expected"):
            Preprocessing.from_json(old[:-1] + f', "{field}": {value}}}')
    fields = '{"image_size": %s, "channels": %s, "mean": %s, "std": %s}'
    for text in (
        "null", "{}", "[]", "{", "[" * 100_000,
        fields % ("0", "1", "[0]", "[1]"), fields % ("8", "1", "[NaN]", "[1]"), fields % ("8", "1", "[0]", "[NaN]"),
        fields % ("8", "1", "[0]", "[1e-320]"), fields % ("8", "1", "[Infinity]", "[1]"), fields % ("8", "1", '"5"', "[1]"),
        fields % ("Infinity", "1", "[0]", "[1]"), fields % ("8", "1", f"[{10**400}]", "[1]"),
        fields % ("8", "1", '{"1": 2}', "[1]"), fields % ("8", "2", "[0, 0]", "[1, 1]"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="expected"):
            Preprocessing.from_json(text)
    with pytest.raises(ValueError, match="expected finite means and stds of at least"):
        Preprocessing(32, 1, (0.0,), (0.0,))


def test_the_order_is_decided_by_seed_and_epoch():
    assert torch.equal(epoch_order(100, 3, 4), epoch_order(100, 3, 4))
    orders = {tuple(epoch_order(100, seed, epoch).tolist()) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_no_augmentation_changes_nothing(images):
    assert torch.equal(Augmentation()(images, generator()), images)


def test_flips_are_flips_of_about_half(images):
    flipped = Augmentation(flip=True)(images, generator())
    same = torch.tensor([torch.equal(a, b) for a, b in zip(flipped, images, strict=True)])
    mirrored = torch.tensor([torch.equal(a, b.flip(-1)) for a, b in zip(flipped, images, strict=True)])
    assert (same | mirrored).all()
    assert 10 < mirrored.sum() < 40


def test_translations_are_shifts_with_black_coming_in(images):
    moved = Augmentation(translate=3)(images, generator())
    seen = set()
    for a, b in zip(moved, images, strict=True):
        padded = np.pad(b[0].numpy(), 3)
        shifts = [
            (dy, dx) for dy in range(7) for dx in range(7) if np.array_equal(a[0], padded[dy : dy + 28, dx : dx + 28])
        ]
        assert shifts
        seen.update(shifts)
    assert len(seen) > 20


def test_erasing_blacks_out_a_square():
    white = torch.full((500, 1, 28, 28), 255, dtype=torch.uint8)
    erased = Augmentation(erase=8)(white, generator())
    black = (erased == 0).sum(dim=(1, 2, 3))
    assert black.max() == 64
    assert 16 <= black.min() < 64
    (whole,) = (black == 64).nonzero(as_tuple=True)
    rows, columns = (erased[whole[0], 0] == 0).nonzero(as_tuple=True)
    assert rows.max() - rows.min() == columns.max() - columns.min() == 7


def test_augmentation_together_keeps_shape_and_repeats_with_its_generator(images):
    augment = Augmentation(flip=True, translate=2, erase=6)
    first, again, other = (augment(images, generator(seed)) for seed in (1, 1, 2))
    assert first.shape == images.shape
    assert first.dtype == torch.uint8
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_cutmix_pastes_a_rectangle_of_the_image_before():
    images = torch.arange(400).view(-1, 1, 1, 1).repeat(1, 2, 28, 20)  # each pixel says whose it is
    before = images.roll(1, 0)
    mixed = images.clone()
    shares = cutmix(mixed, 0.5, generator())
    pasted = mixed != images
    assert torch.equal(mixed[pasted], before[pasted])
    assert torch.equal(shares, pasted.float().mean(dim=(1, 2, 3)))
    for mask in pasted[:, 0]:
        assert torch.equal(mask, mask.any(1, keepdim=True) & mask.any(0, keepdim=True))
    assert 160 < (shares > 0).sum() < 240
    assert shares.max() > 0.5
    assert not cutmix(mixed, 0.0, generator()).any()


def test_processes_paste_the_rectangles_of_the_whole_batch():
    whole = torch.ones(12, 1, 28, 28).cumsum(0)
    shares = cutmix(whole.clone(), 1.0, generator())
    for rank in range(3):
        part = slice(rank, 12, 3)
        assert torch.equal(cutmix(whole[part].clone(), 1.0, generator(), part, 12), shares[part])
