"""The slice data set on disk: read, checked, augmented, sampled."""

import struct
import zlib

import numpy as np
import pytest
import torch
from conftest import refused_or_right
from PIL import Image

from common.dataset.loading import SliceDataset, TrainSampler, augmented, loader
from common.dataset.slices import Slice, read_image, read_set
from common.errors import UserError
from common.files import read_csv


def test_the_data_set_is_what_is_on_disk(slices):
    data = read_set(slices)
    dataset = SliceDataset(data, data.slices)
    rows = read_csv(slices / "manifest.csv")
    assert len(dataset) == len(rows) > 50
    for i in (0, len(rows) // 2):
        item = dataset[i]
        image = np.asarray(Image.open(slices / "images" / f"{item['name']}.png"))
        assert torch.equal(item["image"][0], torch.from_numpy(image / np.float32(255)))
        assert int(item["mask"].sum()) == int(rows[i]["foreground"])
        assert item["image"].dtype == torch.float32 and item["mask"].dtype == torch.int64


def test_what_does_not_fit_the_cache_is_read_from_disk(slices):
    data = read_set(slices)
    cached, not_cached = SliceDataset(data, data.slices), SliceDataset(data, data.slices, 0)
    assert len(not_cached.cache) == 0
    assert torch.equal(cached[3]["image"], not_cached[3]["image"])
    assert torch.equal(cached[3, 5]["image"], not_cached[3, 5]["image"])


def test_image_and_mask_are_augmented_together(own_slices):
    for path in (own_slices / "masks").iterdir():  # the image is its own mask
        Image.open(path).save(own_slices / "images" / path.name)
    data = read_set(own_slices)
    full = [s for s in data.slices if s.foreground > 15]
    dataset = SliceDataset(data, full)
    moved = 0
    for seed in range(20):
        plain, item = dataset[seed % len(full)], dataset[seed % len(full), seed]
        image, mask = item["image"][0] > 0.45, item["mask"] > 0
        moved += not torch.equal(mask, plain["mask"] > 0)
        union = (image | mask).sum()
        assert union == 0 or (image & mask).sum() / union > 0.6
        assert set(item["mask"].unique().tolist()) <= {0, 1}
        assert item["image"].min() >= 0 and item["image"].max() <= 1
    assert moved > 15


def test_augmentation_depends_on_its_seed_alone(slices):
    data = read_set(slices)
    dataset = SliceDataset(data, data.slices)
    first = dataset[2, 77]["image"]
    torch.rand(5)
    state = torch.get_rng_state()
    assert torch.equal(dataset[2, 77]["image"], first)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(dataset[2, 78]["image"], first)


def some_slices(here, rest):
    return [Slice("a", i, 9 if i < here else 0) for i in range(here + rest)]


@pytest.mark.parametrize(("here", "rest", "share"), [(10, 90, 0.5), (20, 60, 0.3), (7, 3, 1.0)])
def test_the_sampler_holds_the_foreground_share_and_repeats_only_when_it_must(here, rest, share):
    slices = some_slices(here, rest)
    drawn = [i for i, _ in TrainSampler(slices, share, True, seed=0)]
    with_foreground = [i for i in drawn if i < here]
    assert len(drawn) == len(slices)
    assert len(with_foreground) == round(share * len(slices))
    counts = np.bincount(with_foreground, minlength=here)
    assert counts.max() - counts.min() <= 1


def test_an_class_that_most_slices_show_is_not_drowned_by_the_few_empty_ones():
    drawn = [i for i, _ in TrainSampler(some_slices(97, 3), 0.5, True, seed=0)]
    assert sorted(drawn) == list(range(100))


def test_share_zero_draws_every_slice_once():
    drawn = list(TrainSampler(some_slices(5, 12), 0, False, seed=1))
    assert sorted(drawn) == list(range(17)) != drawn


def test_processes_share_an_epoch_and_epochs_differ():
    def draw(rank=0, world=1, epoch=1):
        sampler = TrainSampler(some_slices(8, 9), 0.5, True, 4, rank, world)
        sampler.epoch = epoch
        assert len(list(sampler)) == len(sampler)
        return list(sampler)

    whole, parts = draw(), [draw(rank, 3) for rank in range(3)]
    assert [len(part) for part in parts] == [6, 6, 6]  # 17 draws and one of them again
    together = [item for step in zip(*parts, strict=True) for item in step]
    assert [index for index, _ in together] == [index for index, _ in whole + whole[:1]]
    assert draw(epoch=1) == draw(epoch=1) != draw(epoch=2)


def test_worker_processes_change_nothing(slices):
    data = read_set(slices)
    dataset = SliceDataset(data, data.slices[:20])
    runs, before = [], torch.get_rng_state()
    for workers in (0, 2):
        sampler = TrainSampler(dataset.slices, 0.5, True, seed=0)
        batches, images = loader(dataset, 8, sampler, workers), []
        for sampler.epoch in (1, 2):  # the processes of the first serve the second
            images += [b["image"] for b in batches]
        runs.append(images)
    assert len(runs[0]) == 6 and not torch.equal(runs[0][0], runs[0][3])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    assert torch.equal(before, torch.get_rng_state())  # what a model draws depends on no loader


@pytest.mark.parametrize("seed", range(8))
def test_an_empty_mask_does_not_change_how_its_image_is_augmented(seed):
    image, full = torch.rand(1, 32, 32), torch.ones(1, 32, 32, dtype=torch.uint8)
    alone, empty = augmented(image, torch.zeros_like(full), seed)
    beside, _ = augmented(image, full, seed)
    assert torch.equal(alone, beside) and not torch.equal(alone, image)
    assert not empty.any()


def damage(folder, kind):
    """Damage one file; the words that the error must hold."""
    name = read_set(folder).slices[4].name
    image, mask = folder / "images" / f"{name}.png", folder / "masks" / f"{name}.png"
    if kind == "missing mask":
        mask.unlink()
        return f"masks/{name}.png is missing"
    if kind == "mask values":
        Image.fromarray(np.full((32, 32), 7, np.uint8)).save(mask)
        return r"holds the values \[7\]"
    if kind == "size":
        Image.fromarray(np.zeros((30, 32), np.uint8)).save(mask)
        return r"\(30, 32\), its image \(32, 32\)"
    if kind == "truncated":
        image.write_bytes(image.read_bytes()[:90])
        return f"images/{name}.png is damaged"
    if kind == "colour":
        Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(image)
        return "mode RGB"
    image.write_text("hello")
    return "not a picture"


@pytest.mark.parametrize(
    "kind", ["missing mask", "mask values", "size", "truncated", "colour", "text"]
)
def test_a_bad_file_is_named(own_slices, kind):
    words = damage(own_slices, kind)
    data = read_set(own_slices)
    with pytest.raises(UserError, match=words):
        SliceDataset(data, data.slices)


def test_all_bad_files_are_named_at_once(own_slices):
    for s in read_set(own_slices).slices[:3]:
        (own_slices / "masks" / f"{s.name}.png").unlink()
    data = read_set(own_slices)
    with pytest.raises(UserError, match="3 of") as error:
        SliceDataset(data, data.slices)
    assert str(error.value).count("is missing") == 3


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("dataset.json", None),
        ("dataset.json", "[]"),
        ("dataset.json", '{"size": 32, "classes": "spleen"}'),
        ("dataset.json", '{"size": 32, "classes": ["liver", "liver"]}'),
        ("dataset.json", '{"size": 32, "classes": ["liver"], "colours": ["red"]}'),
        ("dataset.json", '{"size": 32, "classes": ["a", "b"], "colours": ["#ff0000"]}'),
        *(
            ("dataset.json", f'{{"size": {size}, "classes": ["spleen"]}}')
            for size in ('"big"', "null", "true", "0", "-4", "31.7", "[32]", "9000")
        ),
        ("dataset.json", '{"size": 32, "classes": ["spleen"], "patients": ["a"]}'),
        ("dataset.json", '{"size": 32, "classes": ["spleen"], "patients": {"zzz": "P"}}'),
        ("dataset.json", '{"size": 32, "classes": ["spleen"], "cases": []}'),
        ("manifest.csv", "case,slice,foreground\na,1,1\nb,1,1\na,1,1\n"),
        ("manifest.csv", "case,slice,foreground\n"),
        ("manifest.csv", "case,slice\na,1\n"),
        ("manifest.csv", "case,slice,foreground\na,x,1\n"),
        ("manifest.csv", "case,slice,foreground\n../a,1,1\n"),
    ],
)
def test_a_broken_index_is_named(own_slices, file, content):
    (own_slices / file).unlink()
    if content is not None:
        (own_slices / file).write_text(content)
    with pytest.raises(UserError, match="No data set in" if content is None else file):
        read_set(own_slices)


def test_a_damaged_picture_is_refused_or_read_right(tmp_path):
    y, x = np.mgrid[:64, :64]
    noise = np.random.default_rng(0).normal(0, 3, (64, 64))
    pixels = (np.sin(x / 5) * 50 + np.cos(y / 7) * 50 + 120 + noise).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert refused_or_right(tmp_path / "a.png", read_image, pixels) > 380


def test_a_picture_that_claims_too_many_pixels_is_refused(tmp_path):
    path = tmp_path / "bomb.png"
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(path)
    head = bytearray(path.read_bytes())
    for width in (9000, 60000):
        head[16:24] = struct.pack(">II", width, width)
        head[29:33] = struct.pack(">I", zlib.crc32(head[12:29]))
        path.write_bytes(head)
        with pytest.raises(UserError, match="bomb.png"):
            read_image(path)


def test_a_manifest_that_counts_other_pixels_is_refused(own_slices):
    text = (own_slices / "manifest.csv").read_text().splitlines()
    shown = next(i for i, line in enumerate(text[1:], 1) if line.split(",")[2] != "0")
    case, index, _, source = text[shown].split(",")
    text[shown] = ",".join((case, index, "0", source))
    (own_slices / "manifest.csv").write_text("\n".join(text) + "\n")
    data = read_set(own_slices)
    with pytest.raises(UserError, match=r"holds \d+ foreground pixels; manifest.csv says 0"):
        SliceDataset(data, data.slices)
