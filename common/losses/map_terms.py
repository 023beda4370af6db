"""The distillation terms that compare whole maps: `MapTerms` weights and names them all.

A term's weight is the flag of its name, in `MapWeights` of common/settings.py; so a new term is
its loss and a line of `MapTerms` here, and a flag there. The losses take logits `(N, C, H, W)` of
student and teacher, compute in float32 even under autocast, and return a scalar. One channel stands
for two classes: its logit z is the pair (0, z).
"""

import torch
from torch import Tensor, nn

from common.losses.contrastive import PairwiseAffinity, border_of
from common.losses.segmentation import full_precision
from common.models.unet import Output
from common.settings import DistillationConfig


class MapTerms(nn.Module):
    """The whole-map terms of the loss, each weighted; those of weight 0 are left out."""

    def __init__(self, config: DistillationConfig):
        super().__init__()
        self.config = config
        self.prediction = PredictionMapLoss(config.temperature)
        self.channelwise = ChannelwiseLoss(config.channel_temperature)
        self.affinity = PairwiseAffinity()

    def forward(self, student: Output, teacher: Output, labels: Tensor) -> dict[str, Tensor]:
        """Scalars by name, from both networks' outputs for the same images; `labels` are class
        indices `(N, H, W)`."""
        config, losses = self.config, {}
        logits = student.logits, teacher.logits
        if weight := config.prediction:
            losses["prediction"] = weight * self.prediction(*logits)
        if weight := config.channelwise:
            shown = shown_channels(labels, student.logits.shape[1])
            losses["channelwise"] = weight * self.channelwise(*logits, shown)
        if weight := config.border:
            losses["border"] = weight * self.prediction(*logits, border_of(labels))
        if weight := config.affinity:
            maps = student.features["decoder"], teacher.features["decoder"]
            losses["affinity"] = weight * self.affinity(*maps)
        return losses


def with_background(logits: Tensor) -> Tensor:
    """One logit channel z -> the two channels (0, z): softmax of these is sigmoid of z."""
    if logits.shape[1] > 1:
        return logits
    return torch.cat([torch.zeros_like(logits), logits], dim=1)


class PredictionMapLoss(nn.Module):
    """KL divergence from the teacher's class distribution to the student's, per pixel, at a
    temperature.

        T^2 mean over pixels of sum_c p_t log(p_t / p_s),   p = softmax(z / T)

    Hinton et al., arXiv 1503.02531. One channel is taken with the implicit background logit 0:
    the Bernoulli KL, equal to the softmax KL of a two-class network.
    """

    def __init__(self, temperature: float):
        super().__init__()
        self.temperature = temperature

    def forward(self, student: Tensor, teacher: Tensor, where: Tensor | None = None) -> Tensor:
        """Logits `(N, C, H, W)` of both; over the pixels of the bool map `where` `(N, H, W)`, or
        all. A scalar, 0 where `where` holds no pixel.

        With the class's border as `where` it is the edge loss of Liu et al., BPKD (arXiv
        2306.08075), without its weights.
        """
        with full_precision(student):
            log_s = (with_background(student.float()) / self.temperature).log_softmax(1)
            log_t = (with_background(teacher.float()) / self.temperature).log_softmax(1)
            divergence = self.temperature**2 * (log_t.exp() * (log_t - log_s)).sum(1)
            if where is None:
                return divergence.mean()
            return (divergence * where).sum() / where.sum().clamp(min=1)


class ChannelwiseLoss(nn.Module):
    """Where in the image a channel is high: KL of its softmax over space (Shu et al., CWD,
    arXiv 2011.13256).

        T^2 mean over shown channels of sum_x q_t(x) log(q_t(x) / q_s(x)),  q = softmax_x(z / T)

    On a slice without foreground the teacher's map is noise, and its softmax would make that noise
    the target: such channels are left out.
    """

    def __init__(self, temperature: float):
        super().__init__()
        self.temperature = temperature

    def forward(self, student: Tensor, teacher: Tensor, shown: Tensor) -> Tensor:
        """Logits `(N, C, H, W)` of both; `shown` bool `(N, C)`: which channels count. A scalar,
        0 where none does."""
        with full_precision(student):
            log_s = (student.float().flatten(2) / self.temperature).log_softmax(2)
            log_t = (teacher.float().flatten(2) / self.temperature).log_softmax(2)
            divergence = self.temperature**2 * (log_t.exp() * (log_t - log_s)).sum(2)
            return (divergence * shown).sum() / shown.sum().clamp(min=1)


def shown_channels(labels: Tensor, channels: int) -> Tensor:
    """Which channels' classes occur on each image: class indices `(N, H, W)` -> bool `(N, C)`.

    The background's counts where a class is: alone it fills the image, and its map is noise.
    """
    if channels == 1:  # the class's: class 1
        return (labels.flatten(1) == 1).any(1, keepdim=True)
    classes = torch.arange(channels, device=labels.device)
    shown = (labels.flatten(1).unsqueeze(1) == classes.view(1, -1, 1)).any(2)
    shown[:, 0] &= shown[:, 1:].any(1)
    return shown
