"""Knowledge distillation: prediction map, multi-scale contrast, and the objective that joins them.

After arXiv 2406.03173, with what its released code lacks: the projections that bring teacher and
student features to one dimension belong to the loss, are in the optimizer and are learned; the
prediction map of a one-channel network is a Bernoulli distribution, not a softmax over one value.
"""

import hashlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.files import UserError
from common.losses import DiceBCELoss, full_precision

SCALES = ("encoder", "bottleneck", "decoder")


def with_background(logits: Tensor) -> Tensor:
    """One logit channel z -> the two channels (0, z): softmax of these is sigmoid of z."""
    if logits.shape[1] > 1:
        return logits
    return torch.cat([torch.zeros_like(logits), logits], dim=1)


class PredictionMapLoss(nn.Module):
    """KL divergence from the teacher's class distribution to the student's, a pixel, tempered.

        T^2 mean over pixels of sum_c p_t log(p_t / p_s),   p = softmax(z / T)

    Hinton et al., arXiv 1503.02531. One channel is taken with the implicit background logit 0:
    the Bernoulli KL, equal to the softmax KL of a two-class network.
    """

    def __init__(self, temperature: float = 2.0):
        super().__init__()
        self.temperature = temperature

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Logits `(N, C, H, W)` of both, a scalar."""
        with full_precision(student):
            log_s = (with_background(student.float()) / self.temperature).log_softmax(1)
            log_t = (with_background(teacher.float()) / self.temperature).log_softmax(1)
            divergence = (log_t.exp() * (log_t - log_s)).sum(1)
            return self.temperature**2 * divergence.mean()


def info_nce(queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """Query i's positive is key i, the other keys are negatives (van den Oord, arXiv 1807.03748).

    Both `(N, D)` and of unit length. Features that tell nothing give log N.
    """
    similarity = queries @ keys.T / temperature
    return F.cross_entropy(similarity, torch.arange(len(queries), device=queries.device))


def supervised_contrast(queries: Tensor, keys: Tensor, labels: Tensor, temperature: float):
    """All keys with a query's label are its positives (Khosla et al., arXiv 2004.11362, L_out).

    Queries and keys `(M, D)` of unit length, `labels` `(M,)`, below 0 where the place is void.
    Features that tell nothing give log of the number of valid keys. 0 if nothing is valid.
    """
    valid = labels >= 0
    similarity = queries @ keys.T / temperature
    # A finite floor: a row with no valid key must stay free of NaN.
    similarity = similarity.masked_fill(~valid, -1e4)
    log_share = similarity.log_softmax(dim=1)
    positive = ((labels[:, None] == labels) & valid).float()
    per_query = -(positive * log_share).sum(1) / positive.sum(1).clamp(min=1)
    return (per_query * valid).sum() / valid.sum().clamp(min=1)


def pixel_classes(mask: Tensor, classes: int, width: int = 2) -> Tensor:
    """Class indices `(N, H, W)` with the organs' border as one more class, numbered `classes`.

    A pixel is border if the `(2 width + 1)`-square around it holds another class.
    """
    labels = mask.float().unsqueeze(1)
    side = 2 * width + 1
    high = F.max_pool2d(labels, side, 1, width)
    low = -F.max_pool2d(-labels, side, 1, width)
    return torch.where((high != low).squeeze(1), classes, mask)


def sample_pixels(labels: Tensor, classes: int, count: int) -> tuple[Tensor, Tensor]:
    """Draw up to `count` pixels of each class over the whole batch, without a device sync.

    `labels` `(N, H, W)` -> flat positions `(classes * count,)` and their class, -1 where the batch
    has too few pixels of it. Without the balance nearly all pixels would be background.
    """
    flat = labels.flatten()
    keys = torch.rand(flat.shape, device=flat.device) + 1
    count = min(count, len(flat))
    positions, found = [], []
    for c in range(classes):
        best = torch.where(flat == c, keys, 0.0).topk(count, sorted=False)
        positions.append(best.indices)
        found.append(torch.where(best.values > 0, c, -1))
    return torch.cat(positions), torch.cat(found)


def features_at(features: Tensor, positions: Tensor, size: tuple[int, int]) -> Tensor:
    """The feature vectors `(M, c)` of a map `(N, c, h, w)` at flat pixel positions of `(N, *size)`.

    A coarse map's vector is that of the cell in which the pixel lies.
    """
    (height, width), (h, w) = size, features.shape[-2:]
    image = positions // (height * width)
    row = positions // width % height * h // height
    column = positions % width * w // width
    return features[image, :, row, column]


class ContrastiveLoss(nn.Module):
    """Contrast between student and teacher features at one scale, with learned projections.

    `form` is `dense`: pixels of organ, border and background, drawn evenly; a student pixel's
    positives are the teacher's pixels of its class, in any image. Or `image`, the thesis's form:
    one vector an image (the map pooled to 4x4 and flattened), the positive is the same image.
    Each side has its own linear projection to `dimension`; for `dense` it is applied to the drawn
    pixels alone, which is what a 1x1 convolution would give there at a fraction of the cost.
    """

    def __init__(self, student: int, teacher: int, form: str, dimension=64, temperature=0.1):
        super().__init__()
        self.form, self.temperature = form, temperature
        cells = 16 if form == "image" else 1
        self.student = nn.Linear(student * cells, dimension)
        self.teacher = nn.Linear(teacher * cells, dimension)

    def forward(self, student: Tensor, teacher: Tensor, positions, found, size) -> Tensor:
        """Feature maps `(N, c, h, w)` of both; the last three come from `sample_pixels`."""
        with full_precision(student):
            if self.form == "image":
                pooled = (
                    F.adaptive_avg_pool2d(x.float(), 4).flatten(1) for x in (student, teacher)
                )
            else:
                pooled = (features_at(x, positions, size).float() for x in (student, teacher))
            s, t = pooled
            s, t = F.normalize(self.student(s), dim=1), F.normalize(self.teacher(t), dim=1)
            if self.form == "image":
                return info_nce(s, t, self.temperature)
            return supervised_contrast(s, t, found, self.temperature)


class Distiller(nn.Module):
    """The objective of a student with a teacher.

        L = L_seg + w_pred L_pred + sum over scales of w_scale L_contrast(scale)

    The segmentation loss has weight 1, as in the student alone: the arms differ in nothing else.
    The teacher is frozen by construction: it runs in eval mode without gradients, and it is not a
    sub-module, so that neither `.train()`, nor an optimizer, nor a checkpoint can reach it. Move
    it to its device before. Terms of weight 0 are left out. Projections are sized by one forward
    pass over an empty `size` x `size` image.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        size: int,
        weights: dict[str, float],
        contrast: str = "dense",
        temperature: float = 2.0,
        contrast_temperature: float = 0.1,
        pixels: int = 128,
    ):
        super().__init__()
        unknown = set(weights) - {"prediction", *SCALES}
        if unknown:
            raise UserError(f"No distillation term {', '.join(sorted(unknown))}.")
        self.model = student
        self._teacher = (teacher.eval().requires_grad_(False),)
        self.fingerprint = fingerprint(teacher)
        self.weights = {name: weight for name, weight in weights.items() if weight}
        self.contrast, self.pixels = contrast, pixels
        self.segmentation = DiceBCELoss()
        self.prediction = PredictionMapLoss(temperature)
        mine, theirs = _channels(student, size), _channels(teacher, size)
        self.scales = nn.ModuleDict(
            {
                scale: ContrastiveLoss(
                    mine[scale], theirs[scale], contrast, temperature=contrast_temperature
                )
                for scale in SCALES
                if scale in self.weights
            }
        )

    @property
    def teacher(self) -> nn.Module:
        """The frozen teacher."""
        return self._teacher[0]

    def get_extra_state(self) -> dict[str, str]:
        """What a checkpoint keeps of the teacher: which one it was, not its weights."""
        return {"teacher": self.fingerprint}

    def set_extra_state(self, state: dict[str, str]) -> None:
        """UserError if a resumed run was begun with another teacher."""
        if state["teacher"] != self.fingerprint:
            raise UserError(
                "This run was begun with another teacher: the weights in --teacher have changed "
                "since. Train under another --name, or anew with --overwrite."
            )

    def forward(self, batch: dict) -> dict[str, Tensor]:
        """`batch` holds `image (N, 3, H, W)` and `mask (N, H, W)`."""
        images, mask = batch["image"], batch["mask"]
        output = self.model(images)
        losses = {"segmentation": self.segmentation(output.logits, mask)}
        if not self.weights:
            return losses
        with torch.no_grad():
            known = self.teacher(images, reconstruct=False)
        if weight := self.weights.get("prediction"):
            losses["prediction"] = weight * self.prediction(output.logits, known.logits)
        positions = found = None
        if self.scales and self.contrast == "dense":
            classes = max(2, output.logits.shape[1])
            labels = pixel_classes(mask, classes)
            positions, found = sample_pixels(labels, classes + 1, self.pixels)
        for scale, loss in self.scales.items():
            mine, theirs = output.features[scale], known.features[scale]
            term = loss(mine, theirs, positions, found, images.shape[-2:])
            losses[f"contrast_{scale}"] = self.weights[scale] * term
        return losses


def fingerprint(module: nn.Module) -> str:
    """A hash of all weights."""
    digest = hashlib.sha256()
    for value in module.state_dict().values():
        digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@torch.no_grad()
def _channels(model: nn.Module, size: int) -> dict[str, int]:
    """Channels of each feature map, by a dummy forward in eval mode (no statistics move)."""
    training = model.training
    device = next(model.parameters()).device
    features = model.eval()(torch.zeros(1, 3, size, size, device=device)).features
    model.train(training)
    return {name: value.shape[1] for name, value in features.items()}
