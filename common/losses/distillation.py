"""Knowledge distillation: prediction map, multi-scale contrast, and the objective that joins them.

Follows arXiv 2406.03173 and adds what its released code lacks: the projections that bring teacher
and student features to one dimension belong to the loss, are in the optimizer and are learned; the
prediction map of a one-channel network is a Bernoulli distribution, not a softmax over one value.
"""

import hashlib

import torch
from torch import Tensor, nn

from common.device import fuse
from common.errors import UserError
from common.losses.contrastive import (
    DenseContrast,
    FeatureHint,
    ImageContrast,
    pixel_classes,
    sample_pixels,
)
from common.losses.map_terms import MapTerms
from common.losses.segmentation import BatchDiceLoss, DiceBCELoss
from common.models.unet import Output, predicted
from common.settings import SCALES, TERMS, DistillationConfig


class Distiller(nn.Module):
    """The objective of a student with a teacher.

        L = w L_seg + w_map L_map + w_channel L_channel + w_border L_border + w_pair L_pair
            + sum over scales of w_scale L_contrast(scale)

    By default w = 1, as in the student alone: the arms differ in the teacher's terms only. The
    teacher is frozen by construction: it runs in eval mode without gradients, and it is not a
    sub-module, so that neither `.train()`, nor an optimizer, nor a checkpoint can reach it. Its
    BatchNorm is folded into its convolutions, in place. Move it to its device before. Terms of
    weight 0 are left out. Projections are sized by one forward pass over an empty `size` x `size`
    image.

    Images under `unlabelled` in the batch take part in the teacher's terms alone; where a term
    asks for classes, theirs are those that the teacher predicts. In the student they pass with the
    labelled ones, so BatchNorm's statistics are of both. Distillation with unlabelled examples:
    Chen et al., arXiv 2006.10029, section 2.
    """

    def __init__(
        self, student: nn.Module, teacher: nn.Module | None, size: int, config: DistillationConfig
    ):
        super().__init__()
        if (teacher is None) != (config.control == "no-teacher"):
            raise ValueError("a teacher, or the control no-teacher: one of them")
        self.model = student
        self._teacher = (teacher,)
        self.fingerprint = fingerprint(teacher) if teacher else "none"
        if teacher:
            fuse(teacher.eval().requires_grad_(False))
        self.config = config
        self.weights = {s: getattr(config, s) for s in config.scales if getattr(config, s)}
        pooled = config.segmentation_loss == "batch-dice"
        self.segmentation = BatchDiceLoss() if pooled else DiceBCELoss()
        self.map_terms = MapTerms(config)
        self.maps = {s: s for s in SCALES} | {"encoder": self._encoder_map()}
        student_channels = _channels(student, size)
        teacher_channels = _channels(teacher, size) if teacher else student_channels
        keys = {scale: self.maps[scale] for scale in self.weights}
        if missing := sorted(
            {*keys.values()} - (student_channels.keys() & teacher_channels.keys())
        ):
            raise UserError(f"Student or teacher has no feature map {', '.join(missing)}.")
        self.scales = nn.ModuleDict(
            {s: self._contrast(student_channels[k], teacher_channels[k]) for s, k in keys.items()}
        )
        self.taught = bool(self.weights) or any(getattr(config, term) for term in TERMS)

    def _encoder_map(self) -> str:
        """The key in a network's features of the map that the encoder's term takes."""
        return "encoder" if self.config.encoder_map == "deepest" else self.config.encoder_map

    def _contrast(self, student: int, teacher: int) -> nn.Module:
        """The chosen form for maps with so many channels."""
        if self.config.contrast == "mse":
            return FeatureHint(student, teacher)
        temperature = self.config.contrast_temperature
        if self.config.contrast == "dense":
            return DenseContrast(student, teacher, temperature)
        return ImageContrast(student, teacher, temperature)

    @property
    def teacher(self) -> nn.Module | None:
        """The frozen teacher; None with the control `no-teacher`."""
        return self._teacher[0]

    def get_extra_state(self) -> dict[str, str]:
        """What a checkpoint keeps of the teacher: its identity, not its weights."""
        return {"teacher": self.fingerprint}

    def set_extra_state(self, state: dict[str, str]) -> None:
        """UserError if a resumed run was started with another teacher."""
        if self.teacher and state["teacher"] != self.fingerprint:
            raise UserError(
                "This run was started with another teacher: the weights in --teacher have changed "
                "since. Train under another --name, or start over with --overwrite."
            )

    def forward(self, batch: dict) -> dict[str, Tensor]:
        """`batch` holds `image (N, 3, H, W)` and `mask (N, H, W)`, perhaps `unlabelled`: images."""
        images, mask = batch["image"], batch["mask"]
        if self.taught and "unlabelled" in batch:
            images = torch.cat([images, batch["unlabelled"]])
        output = self.model(images)
        loss = self.segmentation(output.logits[: len(mask)], mask)
        losses = {"segmentation": self.config.segmentation * loss}
        if not self.taught:
            return losses
        with torch.no_grad():
            target = self.teacher_output(images, output)
            labels = torch.cat([mask, predicted(target.logits[len(mask) :])])
            with_border = self._with_border(labels, output.logits.shape[1])
        maps = self.map_terms(output, target, labels)
        return losses | maps | self.scale_terms(output, target, with_border)

    def _with_border(self, labels: Tensor, channels: int) -> Tensor | None:
        """Class indices with the border as the last class, if a term asks for it."""
        by_class = self.weights and self.config.contrast == "dense"
        return pixel_classes(labels, max(2, channels)) if by_class else None

    def scale_terms(
        self, student: Output, teacher: Output, with_border: Tensor | None
    ) -> dict[str, Tensor]:
        """The contrast at each scale; `with_border` are class indices `(N, H, W)`, the border one
        more, if it is by class."""
        places, losses = None, {}
        if self.weights and with_border is not None:
            count = max(2, student.logits.shape[1]) + 1
            places = sample_pixels(with_border, count, self.config.pixels)
        for scale, loss in self.scales.items():
            key = self.maps[scale]
            term = loss(student.features[key], teacher.features[key], places)
            losses[f"contrast_{scale}"] = self.weights[scale] * term
        return losses

    def teacher_output(self, images: Tensor, output: Output) -> Output:
        """The teacher's output for the images; in a control, what replaces it.

        `other-image`: its output for the batch's next image. That one is mostly another patient's,
        and tells at most where a spleen usually lies. In a batch of one it is zeros.
        `other-features`: the same for the features alone, with the maps of the right image.
        `no-teacher`: the student's own output. Its maps agree with themselves, and what is left is
        a contrast by the labels alone.
        """
        control = self.config.control
        if self.teacher is None:
            features = {name: value.detach() for name, value in output.features.items()}
            return Output(output.logits.detach(), features, None)
        view = self.teacher(images, reconstruct=False)
        if control in ("other-image", "other-features"):
            features = {name: _other(value) for name, value in view.features.items()}
            logits = _other(view.logits) if control == "other-image" else view.logits
            return Output(logits, features, None)
        return view


def _other(values: Tensor) -> Tensor:
    """The values of the batch's next image for each image."""
    return values.roll(1, dims=0) if len(values) > 1 else torch.zeros_like(values)


def fingerprint(module: nn.Module) -> str:
    """A hash of all parameters. BatchNorm's statistics are not in it: those of a random teacher
    are recomputed at each start, and their last bit depends on the number of threads."""
    digest = hashlib.sha256()
    for value in module.parameters():
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@torch.no_grad()
def _channels(model: nn.Module, size: int) -> dict[str, int]:
    """Channels of each feature map, by a dummy forward in eval mode (no statistics move)."""
    training = model.training
    device = next(model.parameters()).device
    features = model.eval()(torch.zeros(1, 3, size, size, device=device)).features
    model.train(training)
    return {name: value.shape[1] for name, value in features.items()}
