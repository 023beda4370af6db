"""Contrast between the features of student and teacher at one scale, with learned projections.

Three forms with one signature: `DenseContrast` (pixels, by class), `ImageContrast` (whole images,
as in arXiv 2406.03173) and `FeatureHint`, which is not a contrast but plain regression of the
teacher's features, for comparison. Each owns its projections: layers of the loss, trained with the
student and not needed afterwards. `PairwiseAffinity` needs none: it compares how similar the
positions of an image are to each other.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.losses.segmentation import full_precision

DIMENSION = 64  # of the projections


class Places(NamedTuple):
    """Drawn pixels of a batch: flat `positions` `(M,)`, their `classes` `(M,)` or -1; and from what
    they were drawn: the class of every pixel, `labels` `(N, H, W)`, one of `kinds`."""

    positions: Tensor
    classes: Tensor
    labels: Tensor
    kinds: int


def info_nce(queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """Query i's positive is key i, the other keys are negatives (van den Oord, arXiv 1807.03748).

    Both `(N, D)` and of unit length. Uninformative features give log N.
    """
    similarity = queries @ keys.T / temperature
    return F.cross_entropy(similarity, torch.arange(len(queries), device=queries.device))


def supervised_contrast(
    queries: Tensor, keys: Tensor, labels: Tensor, key_labels: Tensor, temperature: float
) -> Tensor:
    """All keys with a query's label are its positives (Khosla et al., arXiv 2004.11362, L_out).

    Queries `(M, D)` and keys `(K, D)` of unit length, their labels `(M,)` and `(K,)`, below 0 where
    void. Uninformative features give log of the number of valid keys. A query without a valid
    positive does not count; 0 if none has one.
    """
    valid = key_labels >= 0
    similarity = queries @ keys.T / temperature
    # A finite floor: a row with no valid key must stay free of NaN.
    log_share = similarity.masked_fill(~valid, -1e4).log_softmax(dim=1)
    positive = ((labels[:, None] == key_labels) & valid).float()
    count = positive.sum(1)
    per_query = -(positive * log_share).sum(1) / count.clamp(min=1)
    return per_query.sum() / (count > 0).sum().clamp(min=1)


def border_of(mask: Tensor, width: int = 2) -> Tensor:
    """Where the `(2 width + 1)`-square around a pixel holds another class: class indices
    `(N, H, W)` -> bool `(N, H, W)`."""
    labels, side = mask.float().unsqueeze(1), 2 * width + 1
    high = F.max_pool2d(labels, side, 1, width)
    low = -F.max_pool2d(-labels, side, 1, width)
    return (high != low).squeeze(1)


def pixel_classes(mask: Tensor, num_classes: int) -> Tensor:
    """Class indices `(N, H, W)` with the border as one more class, numbered `num_classes`.

    With several classes only the background next to them is border: a small class is nothing but
    border (at 128 pixels an adrenal gland has no pixel that is not), and would lose its own class.
    """
    border = border_of(mask)
    if num_classes > 2:
        border &= mask == 0
    return torch.where(border, num_classes, mask)


def sample_pixels(labels: Tensor, kinds: int, count: int) -> Places:
    """Draw up to `count` pixels of each class over the whole batch, without a device sync.

    `labels` `(N, H, W)`, each one of `kinds` classes -> `kinds * count` places; their class is -1
    where the batch has too few pixels of it. Without the balance nearly all pixels would be
    background.
    """
    flat = labels.flatten()
    keys = torch.rand(flat.shape, device=flat.device) + 1
    count = min(count, len(flat))
    positions, classes = [], []
    for c in range(kinds):
        best = torch.where(flat == c, keys, 0.0).topk(count, sorted=False)
        positions.append(best.indices)
        classes.append(torch.where(best.values > 0, c, -1))
    return Places(torch.cat(positions), torch.cat(classes), labels, kinds)


def features_at(features: Tensor, positions: Tensor, size: tuple[int, int]) -> Tensor:
    """The feature vectors `(M, c)` of a map `(N, c, h, w)` at flat pixel positions of `(N, *size)`.

    A coarse map's vector is that of the cell in which the pixel lies.
    """
    (height, width), (h, w) = size, features.shape[-2:]
    image = positions // (height * width)
    row = positions // width % height * h // height
    column = positions % width * w // width
    return features[image, :, row, column]


class DenseContrast(nn.Module):
    """Equally many pixels of each class and of the border: same class attracts, others repel.

    A student pixel's positives are the teacher's pixels of its class, in any image (supervised
    contrast). Each side has its own linear projection to 64 dimensions, applied to the drawn pixels
    alone: what a 1x1 convolution would give there, at a fraction of the cost.
    """

    def __init__(self, student: int, teacher: int, temperature: float):
        super().__init__()
        self.temperature = temperature
        self.student = nn.Linear(student, DIMENSION)
        self.teacher = nn.Linear(teacher, DIMENSION)

    def forward(self, student: Tensor, teacher: Tensor, places: Places) -> Tensor:
        """Feature maps `(N, c, h, w)` of both, each with its own c, h and w; a scalar."""
        size = places.labels.shape[-2:]
        with full_precision(student):
            queries = self.student(features_at(student, places.positions, size).float())
            keys = self.teacher(features_at(teacher, places.positions, size).float())
            queries, keys = F.normalize(queries, dim=1), F.normalize(keys, dim=1)
            classes = places.classes
            return supervised_contrast(queries, keys, classes, classes, self.temperature)


class ImageContrast(nn.Module):
    """The thesis's form: one vector per image; its positive is the teacher's of the same image.

    A map is pooled to 4x4 cells, flattened and projected: whole maps would be vectors of up to
    4 million dimensions. The negatives are the other images of the batch.
    """

    def __init__(self, student: int, teacher: int, temperature: float):
        super().__init__()
        self.temperature = temperature
        self.student = nn.Linear(16 * student, DIMENSION)
        self.teacher = nn.Linear(16 * teacher, DIMENSION)

    def forward(self, student: Tensor, teacher: Tensor, places: Places | None = None) -> Tensor:
        """Feature maps `(N, c, h, w)` of both, a scalar; `places` is not used."""
        with full_precision(student):
            s, t = (F.adaptive_avg_pool2d(x.float(), 4).flatten(1) for x in (student, teacher))
            s, t = F.normalize(self.student(s), dim=1), F.normalize(self.teacher(t), dim=1)
            return info_nce(s, t, self.temperature)


class FeatureHint(nn.Module):
    """Mean squared error to the teacher's features (FitNets, Romero et al., arXiv 1412.6550).

    The student's are projected to the teacher's channels, the finer map is averaged to the cells
    of the coarser, and both are brought to unit length: 2 - 2 cos, which no scale can cheat. The
    teacher has no projection here: with one, both sides could agree on a constant.
    """

    def __init__(self, student: int, teacher: int):
        super().__init__()
        self.student = nn.Conv2d(student, teacher, 1)

    def forward(self, student: Tensor, teacher: Tensor, places: Places | None = None) -> Tensor:
        """Feature maps `(N, c, h, w)` of both, a scalar; `places` is not used."""
        size = min(student.shape[-2:], teacher.shape[-2:])
        with full_precision(student):
            s, t = (F.adaptive_avg_pool2d(x.float(), size) for x in (student, teacher))
            s, t = F.normalize(self.student(s), dim=1), F.normalize(t, dim=1)
            return (s - t).square().sum(1).mean()


class PairwiseAffinity(nn.Module):
    """How alike any two positions of an image are, compared between the networks (Liu et al., arXiv
    1903.04197).

    Maps are averaged to 16x16 places; the loss is the mean squared difference between
    the cosine similarities of all pairs of places in the student's map and in the teacher's. There
    is nothing to project: similarities have no channels.
    """

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Feature maps `(N, c, h, w)` of both, a scalar."""
        size = [min(16, *student.shape[-2:], *teacher.shape[-2:])] * 2
        with full_precision(student):
            s, t = (F.adaptive_avg_pool2d(x.float(), size).flatten(2) for x in (student, teacher))
            s, t = F.normalize(s, dim=1), F.normalize(t, dim=1)
            return (s.mT @ s - t.mT @ t).square().mean()
