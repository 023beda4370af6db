"""Segmentation and reconstruction losses, and the objectives of teachers and plain students.

Losses take logits and class indices, compute in float32 even under autocast, and return a scalar.
An objective's `forward(batch)` returns a dict of named, already weighted losses.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SMOOTH = 1.0


def full_precision(tensor: Tensor):
    """Context without autocast on the tensor's device: sums over a map overflow in half types."""
    return torch.autocast(tensor.device.type, enabled=False)


def one_hot(target: Tensor, channels: int) -> Tensor:
    """Class indices `(N, H, W)` -> float `(N, C, H, W)`; one channel means "is the class"."""
    if channels == 1:
        return (target > 0).float().unsqueeze(1)
    return F.one_hot(target, channels).movedim(-1, 1).float()


class DiceBCELoss(nn.Module):
    """Soft Dice + cross-entropy from logits `(N, C, H, W)` and class indices `(N, H, W)`.

        Dice = 1 - mean over images of (2 sum(p t) + s) / (sum(p) + sum(t) + s),  s = 1
        BCE  = mean over pixels of the binary cross-entropy (C = 1) or cross-entropy (C > 1)

    Dice is counted per image: pooled over the batch, a large spleen would hide a missed small one.
    For one class the smoothing s also gives an empty slice its gradient: predict nothing there.

    For several classes (C > 1; the background is in the cross-entropy alone) an image's first term
    is the mean over those that it shows, 0 if it shows none. Absent classes are left to the
    cross-entropy: most classes are missing from most slices, and were their empty channels counted,
    "predict nothing" would be most of the term. S1 then finds no kidney (docs/LOG.md, section 7).
    """

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The sum of both terms, a scalar."""
        with full_precision(logits):
            logits = logits.float()
            truth = one_hot(target, logits.shape[1])
            if logits.shape[1] == 1:
                entropy = F.binary_cross_entropy_with_logits(logits, truth)
                probability, counted = logits.sigmoid(), torch.ones_like(truth[:, :, 0, 0])
            else:
                entropy = F.cross_entropy(logits, target)
                probability, truth = logits.softmax(1)[:, 1:], truth[:, 1:]
                counted = truth.amax((2, 3))
            overlap = 2 * (probability * truth).sum((2, 3)) + SMOOTH
            total = probability.sum((2, 3)) + truth.sum((2, 3)) + SMOOTH
            missed = (1 - overlap / total) * counted
            return (missed.sum(1) / counted.sum(1).clamp(min=1)).mean() + entropy


class BatchDiceLoss(nn.Module):
    """Soft Dice of all pixels of a batch together: what the thesis's distilled students train with.

    From logits `(N, C, H, W)` and class indices `(N, H, W)`; for several classes the mean over
    those that the batch shows. A batch without any has the loss of one that is empty.
    """

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """A scalar, 0..1."""
        with full_precision(logits):
            logits, truth = logits.float(), one_hot(target, logits.shape[1])
            probability = logits.sigmoid()
            if logits.shape[1] > 1:
                probability, truth = logits.softmax(1)[:, 1:], truth[:, 1:]
            overlap = 2 * (probability * truth).sum((0, 2, 3)) + SMOOTH
            total = probability.sum((0, 2, 3)) + truth.sum((0, 2, 3)) + SMOOTH
            shown = truth.amax((0, 2, 3))
            shown = torch.where(shown.any(), shown, torch.ones_like(shown))
            return ((1 - overlap / total) * shown).sum() / shown.sum()


class SegmentationObjective(nn.Module):
    """A student alone: DiceBCE of its logits."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.loss = DiceBCELoss()

    def forward(self, batch: dict) -> dict[str, Tensor]:
        """`batch` holds `image (N, 3, H, W)` and `mask (N, H, W)`."""
        return {"segmentation": self.loss(self.model(batch["image"]).logits, batch["mask"])}


def hide_patches(images: Tensor, ratio: float, grid: int = 16) -> Tensor:
    """Images `(N, c, H, W)` with a fraction `ratio` of the cells of a `grid` x `grid` raster set to
    0, at random, each image's own.

    Random numbers come from torch's generator of the images' device.
    """
    n, _, height, width = images.shape
    kept = (torch.rand(n, 1, grid, grid, device=images.device) >= ratio).to(images.dtype)
    return images * F.interpolate(kept, (height, width), mode="nearest")


class MultiTaskObjective(nn.Module):
    """A teacher: DiceBCE of its segmentation + `weight` x MSE of its reconstruction.

    Full-resolution skips would let the second decoder copy its input and learn nothing, so it
    restores what it was not shown: in a random half of each batch a fraction `mask_ratio` of the
    patches is masked (as in masked auto-encoders, He et al., arXiv 2111.06377), and the
    reconstruction is compared with the whole image on that half. The other half stays whole,
    because the segmentation meets whole images at test time. One forward pass gives both outputs.
    With weight 0 patches are still hidden: the segmentation's input does not depend on it.
    """

    def __init__(self, model: nn.Module, weight: float = 0.2, mask_ratio: float = 0.25):
        super().__init__()
        self.model, self.weight, self.mask_ratio = model, weight, mask_ratio
        self.loss = DiceBCELoss()

    def forward(self, batch: dict) -> dict[str, Tensor]:
        """`batch` holds `image (N, 3, H, W)` and `mask (N, H, W)`."""
        images, target = batch["image"], batch["mask"]
        # Batches are drawn in random order: the first half is a random half (one image: itself).
        half = -(-len(images) // 2)
        shown = torch.cat([hide_patches(images[:half], self.mask_ratio), images[half:]])
        if images.is_contiguous(memory_format=torch.channels_last):
            shown = shown.contiguous(memory_format=torch.channels_last)
        output = self.model(shown)
        losses = {"segmentation": self.loss(output.logits, target)}
        if self.weight:
            with full_precision(images):
                error = F.mse_loss(output.reconstruction[:half].float(), images[:half].float())
            losses["reconstruction"] = self.weight * error
        return losses
