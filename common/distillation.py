"""Knowledge distillation: prediction map, multi-scale contrast, and the objective that joins them.

After arXiv 2406.03173, with what its released code lacks: the projections that bring teacher and
student features to one dimension belong to the loss, are in the optimizer and are learned; the
prediction map of a one-channel network is a Bernoulli distribution, not a softmax over one value.
"""

import hashlib

import torch
from torch import Tensor, nn

from common.config import DistillationConfig
from common.contrast import DenseContrast, FeatureHint, ImageContrast, pixel_classes, sample_pixels
from common.files import UserError
from common.losses import DiceBCELoss, full_precision


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
        self, student: nn.Module, teacher: nn.Module, size: int, config: DistillationConfig
    ):
        super().__init__()
        self.model = student
        self._teacher = (teacher.eval().requires_grad_(False),)
        self.fingerprint = fingerprint(teacher)
        self.config = config
        self.weights = {s: getattr(config, s) for s in config.scales if getattr(config, s)}
        self.segmentation = DiceBCELoss()
        self.prediction = PredictionMapLoss(config.temperature)
        mine, theirs = _channels(student, size), _channels(teacher, size)
        self.scales = nn.ModuleDict(
            {scale: self._contrast(mine[scale], theirs[scale]) for scale in self.weights}
        )

    def _contrast(self, student: int, teacher: int) -> nn.Module:
        """The chosen form for maps with so many channels."""
        if self.config.contrast == "mse":
            return FeatureHint(student, teacher)
        form = DenseContrast if self.config.contrast == "dense" else ImageContrast
        return form(student, teacher, self.config.contrast_temperature)

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
        if not self.weights and not self.config.prediction:
            return losses
        with torch.no_grad():
            known = self.teacher(self._shown(images), reconstruct=False)
        if weight := self.config.prediction:
            losses["prediction"] = weight * self.prediction(output.logits, known.logits)
        places = None
        if self.weights and self.config.contrast == "dense":
            classes = max(2, output.logits.shape[1])
            labels = pixel_classes(mask, classes)
            places = sample_pixels(labels, classes + 1, self.config.pixels)
        for scale, loss in self.scales.items():
            term = loss(output.features[scale], known.features[scale], places)
            losses[f"contrast_{scale}"] = self.weights[scale] * term
        return losses

    def _shown(self, images: Tensor) -> Tensor:
        """What the teacher sees: the images, or for the control `other-image` the next one each.

        That one is mostly another patient's, and tells at most where a spleen is wont to lie. A
        batch of one has no other: the teacher sees nothing then.
        """
        if self.config.control != "other-image":
            return images
        return images.roll(1, dims=0) if len(images) > 1 else torch.zeros_like(images)


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
