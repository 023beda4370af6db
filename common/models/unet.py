"""U-Net blocks and the thesis's three U-Nets: teacher T1, students S1 and S2.

U-Net: Ronneberger et al., MICCAI 2015 (arXiv 1505.04597), here with padded convolutions and batch
normalisation. The teacher has a second decoder that reconstructs the input (arXiv 2406.03173).
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from common.errors import UserError

CHANNELS = 3  # of the images: grey, repeated


class Output(NamedTuple):
    """What every network of this repository returns for images `(N, 3, H, W)`.

    `logits` is `(N, C, H, W)`: one channel for one class (sigmoid), else one channel a class
    with the background first (softmax). `features` maps `encoder` (the deepest skip),
    `bottleneck` and `decoder` (the last stage before the logits) to maps `(N, c, h, w)`, each
    with its own c, h and w, and `stride4` to the encoder's map of a quarter of the image's height,
    which the thesis pairs. `reconstruction` is `(N, 3, H, W)` in 0..1, or None.
    """

    logits: Tensor
    features: dict[str, Tensor]
    reconstruction: Tensor | None


def predicted(logits: Tensor) -> Tensor:
    """Logits `(N, C, H, W)` -> class indices `(N, H, W)`; one channel: probability above 0.5."""
    return (logits[:, 0] > 0).long() if logits.shape[1] == 1 else logits.argmax(1)


def probabilities(logits: Tensor) -> Tensor:
    """Logits `(N, C, H, W)` -> a float32 map in 0..1 for each class, `(N, classes, H, W)`."""
    logits = logits.float()
    return logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(1)[:, 1:]


def decided(maps: Tensor) -> Tensor:
    """Probabilities `(n, classes, H, W)` -> class indices, uint8 `(n, H, W)`: the likeliest class,
    where it is likelier than the background. For one class: above 0.5."""
    best, class_name = maps.max(1)
    return ((class_name + 1) * (best > 1 - maps.sum(1))).to(torch.uint8)


def convolutions(inputs: int, outputs: int, count: int) -> nn.Sequential:
    """`count` times: 3x3 convolution, batch normalisation, ReLU. Height and width stay."""
    layers = []
    for i in range(count):
        layers += [
            nn.Conv2d(inputs if i == 0 else outputs, outputs, 3, padding=1),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


class Up(nn.Module):
    """Double the size, concatenate the skip, convolve: (inputs, h, w) -> (outputs, 2h, 2w)."""

    def __init__(self, inputs: int, outputs: int, count: int):
        super().__init__()
        self.up = nn.ConvTranspose2d(inputs, outputs, 2, stride=2)
        self.conv = convolutions(2 * outputs, outputs, count)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """`x` (N, inputs, h, w) and `skip` (N, outputs, 2h, 2w) -> (N, outputs, 2h, 2w)."""
        return self.conv(torch.cat([skip, self.up(x)], dim=1))


class Decoder(nn.Module):
    """The way up, with a 1x1 convolution to `channels` at its end."""

    def __init__(self, widths: tuple[int, ...], count: int, channels: int):
        super().__init__()
        pairs = zip(widths[:0:-1], widths[-2::-1], strict=True)
        self.ups = nn.ModuleList(Up(deep, shallow, count) for deep, shallow in pairs)
        self.head = nn.Conv2d(widths[0], channels, 1)

    def forward(self, bottleneck: Tensor, skips: list[Tensor]) -> tuple[Tensor, Tensor]:
        """`skips` run from full size down. Returns the head's output and the last feature map."""
        x = bottleneck
        for up, skip in zip(self.ups, reversed(skips), strict=True):
            x = up(x, skip)
        return self.head(x), x


class UNet(nn.Module):
    """A U-Net with one width per level; `count` convolutions per level; `num_classes` output
    channels.

    With `reconstruction` a second decoder of the same shape restores the image from the shared
    encoder. Height and width must be multiples of `2 ** (len(widths) - 1)`.
    """

    def __init__(
        self,
        widths: tuple[int, ...],
        count: int = 2,
        num_classes: int = 1,
        reconstruction: bool = False,
    ):
        super().__init__()
        ins = (CHANNELS, *widths[:-1])
        self.levels = nn.ModuleList(
            convolutions(i, o, count) for i, o in zip(ins, widths, strict=True)
        )
        self.pool = nn.MaxPool2d(2)
        self.segmentation = Decoder(widths, count, num_classes)
        self.reconstruction = Decoder(widths, count, CHANNELS) if reconstruction else None
        self.multiple = 2 ** (len(widths) - 1)

    def forward(self, images: Tensor, reconstruct: bool = True) -> Output:
        """Images `(N, 3, H, W)` in 0..1 -> Output; `reconstruct=False` skips that decoder."""
        check_size(images, self.multiple)
        skips, inputs = [], [images]  # of each level
        for level in self.levels[:-1]:
            skips.append(level(inputs[-1]))
            inputs.append(self.pool(skips[-1]))
        bottleneck = self.levels[-1](inputs[-1])
        logits, decoded = self.segmentation(bottleneck, skips)
        restored = None
        if self.reconstruction is not None and reconstruct:
            restored = self.reconstruction(bottleneck, skips)[0].sigmoid()
        features = {"encoder": skips[-1], "bottleneck": bottleneck, "decoder": decoded}
        if len(skips) > 1:
            features["stride4"] = inputs[2]
        return Output(logits, features, restored)


def check_size(images: Tensor, multiple: int) -> None:
    """UserError, with the next size that works, if H or W is not a multiple of `multiple`."""
    height, width = images.shape[-2:]
    if height % multiple or width % multiple:
        better = max(multiple, -(-max(height, width) // multiple) * multiple)
        raise UserError(
            f"The network cannot take {height}x{width} images: height and width must be multiples "
            f"of {multiple}. Make the data set again with --size {better}, or a "
            "multiple of 16, which suits every stage."
        )


def teacher_t1(width: int = 64, num_classes: int = 1, reconstruction: bool = True) -> UNet:
    """T1: five levels 64-128-256-512-1024, two decoders: 43,236,036 parameters (one class)."""
    widths = tuple(width * 2**level for level in range(5))
    return UNet(widths, count=2, num_classes=num_classes, reconstruction=reconstruction)


def teacher_t1_of(checkpoint: dict) -> UNet:
    """T1 as it was when `checkpoint` was written, its weights not yet loaded."""
    config = checkpoint["config"]
    return teacher_t1(
        config["width"], checkpoint["num_classes"], config["reconstruction_weight"] > 0
    )


def student_s1(num_classes: int = 1, deep: bool = False) -> UNet:
    """S1: three levels 16-32-64, single convolutions: 57,297 parameters (one class).

    A logit depends on 26x26 input pixels: the student cannot know where in the body it is. `deep`
    is not a model of the thesis but tests that limit: five narrow levels 10-16-22-28-34, 57,187
    parameters, 110x110 pixels.
    """
    return UNet((10, 16, 22, 28, 34) if deep else (16, 32, 64), count=1, num_classes=num_classes)


def student_s2(num_classes: int = 1, deep: bool = False) -> UNet:
    """S2: S1 twice as wide, 32-64-128: 227,233 parameters (one class); same receptive field as S1.

    `deep`: five levels 20-32-44-56-68, 226,917 parameters.
    """
    return UNet((20, 32, 44, 56, 68) if deep else (32, 64, 128), count=1, num_classes=num_classes)


def parameters(module: nn.Module) -> int:
    """Number of trainable scalars."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
