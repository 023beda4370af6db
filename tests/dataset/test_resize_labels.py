"""Label maps are resized by area, with the same pixel centres as their image."""

import numpy as np
import pytest
from scipy import ndimage
from skimage.measure import block_reduce
from small_shapes import centroid, disc

from common.dataset.preprocessing import resize_labels, to_square

VALUES = (1, 2, 3, 7)
SIZES = {512: (256, 128, 400, 512, 640), 80: (40, 64, 100)}


@pytest.mark.parametrize(("size", "to"), [(s, t) for s, ts in SIZES.items() for t in ts])
def test_image_and_mask_have_the_same_centre(size, to):
    """Averaged over eight discs: a single one's border is rounded to whole pixels."""
    rng, shifts, growth = np.random.default_rng(to), [], []
    for _ in range(8):
        shape = disc(size, rng.uniform(0.4, 0.6, 2) * size, rng.uniform(0.2, 0.3) * size)
        image = to_square(shape * np.uint8(255), (1, 1), to, mask=False)
        mask = to_square(shape * np.uint8(255), (1, 1), to, mask=True)
        assert {*np.unique(mask)} == {0, 255}
        shifts.append([centroid(image) - centroid(mask), centroid(shape) - centroid(mask)])
        growth.append(mask.astype(bool).mean() / shape.mean())
    assert np.mean(growth) == pytest.approx(1, abs=0.005)
    assert np.abs(shifts).max() * to < 0.15
    assert np.abs(np.mean(shifts, axis=0)).max() * to < 0.05


@pytest.mark.parametrize("to", [256, 128, 400])
def test_every_class_has_the_centre_of_its_image(to):
    """Averaged over 24 places."""
    rng, shifts = np.random.default_rng(to), []
    for _ in range(24):
        labels = np.zeros((512, 512), np.uint8)
        centres = np.array([(150, 200), (330, 180), (260, 390)]) + rng.uniform(-9, 9, (3, 2))
        for value, centre in zip((1, 2, 7), centres, strict=True):
            labels[disc(512, centre, 70)] = value
        labels[disc(512, centres[1], 40)] = 3  # inside of 2, as a ventricle in its myocardium
        small = to_square(labels, (1, 1), to, mask=True)
        assert {*np.unique(small)} == {0, 1, 2, 3, 7}
        images = [to_square((labels == v) * np.uint8(255), (1, 1), to, mask=False) for v in VALUES]
        pairs = zip(VALUES, images, strict=True)
        shifts.append([centroid(image) - centroid(small == value) for value, image in pairs])
    assert np.abs(np.mean(shifts, axis=0)).max() * to < 0.05


@pytest.mark.parametrize(
    ("size", "to", "fine"), [(64, 32, 1), (64, 16, 1), (64, 50, 25), (30, 45, 3)]
)
def test_a_pixel_gets_the_label_that_covers_most_of_it(size, to, fine):
    """Against block means of a finer grid, on which both sizes have whole pixels."""
    rng = np.random.default_rng(size)
    noise = ndimage.gaussian_filter(rng.normal(size=(size, size)), size / 8)
    labels = np.digitize(noise, np.quantile(noise, (0.5, 0.8))).astype(np.uint8)
    grid = np.kron(labels, np.ones((fine, fine), np.uint8))
    block = (size * fine // to,) * 2
    shares = np.stack([block_reduce(grid == value, block, np.mean) for value in (1, 2, 0)])
    expected = np.array([1, 2, 0])[shares.argmax(0)]
    resized = resize_labels(labels, (to, to))
    tied = np.sort(shares, 0)[-1] - np.sort(shares, 0)[-2] < 1e-6
    assert (resized == expected)[~tied].mean() > 0.99  # the rest are thin parts that are kept
    binary = resize_labels((labels > 0) * np.uint8(255), (to, to))
    tied = np.abs(shares[2] - 0.5) < 1e-6
    assert ((binary > 0) == (shares[2] < 0.5))[~tied].mean() > 0.99


@pytest.mark.parametrize("to", [256, 128, 64])
def test_ties_make_nothing_grow_or_move(to):
    """A box whose edges all run through the middle of pixels: each edge pixel is a tie."""
    half, side = 256 // to, 512 // to
    box = np.zeros((512, 512), np.uint8)
    low, high = 10 * side + half, 40 * side + half
    box[low:high, low:high] = 1
    small = resize_labels(box, (to, to))
    assert small.mean() == pytest.approx(box.mean(), rel=0.01)
    assert np.allclose(centroid(small), centroid(box), atol=0.02 / to)
    two = box + 1
    two[:, 512 - half - side :] = 0  # the two labels meet at ties too, and nothing is between them
    small = resize_labels(two, (to, to))
    for value in (1, 2):
        assert (small == value).mean() == pytest.approx((two == value).mean(), rel=0.01)


@pytest.mark.parametrize("to", [256, 128, 64])
def test_small_discs_keep_their_area_on_average(to):
    """Nodules of 8 to 60 pixels at 512; averaged over 40 places. The majority rounds off what is
    only two pixels wide."""
    for radius in (4, 5, 8, 15, 30):
        rng, before, after = np.random.default_rng(radius), 0, 0
        for _ in range(40):
            nodule = disc(512, rng.uniform(100, 400, 2), radius)
            before += nodule.mean()
            after += resize_labels(nodule.astype(np.uint8), (to, to)).astype(bool).mean()
        pixels = 2 * radius * to / 512
        low, high = (0.95, 1.02) if pixels >= 4 else (0.8, 1.05) if pixels >= 2 else (0.75, 1.4)
        assert low < after / before < high, radius


@pytest.mark.parametrize("to", [256, 192, 128, 96, 64])
def test_thin_labels_that_touch_all_stay(to):
    """Three lines of two pixels side by side, at every place between the pixels."""
    for place in range(8):
        labels = np.zeros((512, 512), np.uint8)
        for value in (1, 2, 3):
            labels[98 + 2 * value + place :, 50:450][:2] = value
        small = resize_labels(labels, (to, to))
        length = 400 * to / 512
        for value in (1, 2, 3):
            columns = np.flatnonzero((small == value).any(0))
            assert len(columns) >= 0.23 * length
            assert np.diff(columns).max() <= 6
            assert columns.max() - columns.min() >= length - 9


def test_a_thin_label_does_not_push_another_out():
    labels = np.zeros((64, 64), np.uint8)
    labels[8:16, 8:16] = 1
    labels[10:13, 10:13] = 2  # inside the one pixel of 1
    assert resize_labels(labels, (8, 8)).tolist() == np.pad([[1]], ((1, 6), (1, 6))).tolist()
    liver = np.ones((64, 64), np.uint8)
    liver[:, 34:36] = 2  # a vessel in it
    small = resize_labels(liver, (8, 8))
    assert (small[:, 4] == 2).all()
    assert (np.delete(small, 4, axis=1) == 1).all()


@pytest.mark.parametrize("offset", range(8))
def test_a_vessel_keeps_one_pixel_in_each_row(offset):
    """At an eighth of the size, wherever it lies: no gaps, no second pixel where one is enough."""
    vessel = np.zeros((512, 512), np.uint8)
    vessel[:, 240 + offset :][:, :2] = 1
    for to in (256, 128, 64):
        assert set(resize_labels(vessel, (to, to))[1:-1].sum(1)) == {1}


def test_there_and_back_is_closer_than_by_the_nearest_pixel():
    shape = disc(512, (250.4, 260.9), 60) | disc(512, (300.2, 310.3), 25)
    for to in (256, 128):
        nearest = np.kron(shape[1 :: 512 // to, 1 :: 512 // to], np.ones((512 // to,) * 2, bool))
        back = resize_labels(resize_labels(shape.astype(np.uint8), (to, to)), (512, 512)) > 0

        def dice(other):
            return 2 * (shape & other).sum() / (shape.sum() + other.sum())

        assert dice(back) > dice(nearest) + 0.001


@pytest.mark.parametrize("to", [64, 128, 192, 256, 400])
@pytest.mark.parametrize("angle", [0, 8, 17, 30, 45, 71, 90])
@pytest.mark.parametrize("width", [1, 2, 3, 5])
def test_a_vessel_stays_in_one_piece(to, angle, width):
    if width == 1 and to == 64:
        return  # an eighth of a pixel at best: below what is kept
    y, x = np.mgrid[:512, :512] + 0.5
    turn = np.radians(angle)
    for shift in (0.0, 0.5, 1.0, 2.3, 3.0):
        off = (x - 256 - shift) * np.cos(turn) + (y - 256) * np.sin(turn)
        along = (y - 256) * np.cos(turn) - (x - 256) * np.sin(turn)
        vessel = (np.abs(off) <= width / 2) & (np.abs(along) < 200)
        labels = vessel * np.uint8(1)
        labels[disc(512, (60, 60), 30)] = 2
        small = resize_labels(labels, (to, to)) == 1
        assert small.sum() >= 0.65 * 400 * to / 512  # pixels across the corner are longer
        assert ndimage.label(small, np.ones((3, 3)))[1] == 1
        assert np.abs(centroid(small) - centroid(vessel)).max() * to < 3


def test_nothing_else_comes_or_goes():
    empty = np.zeros((50, 40), np.uint8)
    assert not resize_labels(empty, (20, 16)).any()
    full = np.full((50, 40), 3, np.uint8)
    assert (resize_labels(full, (20, 16)) == 3).all()
    speck = empty.copy()
    speck[10, 10] = 255  # a sixteenth of a pixel: noise, not a structure
    assert not resize_labels(speck, (12, 10)).any()
    assert np.array_equal(resize_labels(speck, (50, 40)), speck)
