"""TransUNet blocks and the thesis's second teacher, T2.

TransUNet: Chen et al., arXiv 2102.04306: a ResNet-50 down to stride 16, a vision transformer
(Dosovitskiy et al., arXiv 2010.11929) over the cells of its last map, a cascaded decoder with the
ResNet's maps as skips. As in T1 a second decoder reconstructs the input (arXiv 2406.03173).
"""

import hashlib
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import ResNet50_Weights, ViT_B_16_Weights, resnet50, vit_b_16

from common.errors import UserError
from common.files import shown
from common.models.unet import Output, check_size, convolutions

SKIPS = (64, 256, 512)  # channels of ResNet-50 at strides 2, 4 and 8
HEAD = 64  # channels of an attention head, as in every ViT of the paper
DROPOUT = 0.1  # as in TransUNet's and ViT's own training


class Attention(nn.Module):
    """Multi-head self-attention over tokens `(N, T, width)`."""

    def __init__(self, width: int):
        super().__init__()
        self.heads = width // HEAD
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Every token looks at all tokens of its image."""
        n, tokens, width = x.shape
        qkv = self.qkv(x).view(n, tokens, 3, self.heads, HEAD)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (N, heads, T, HEAD)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.out(x.transpose(1, 2).reshape(n, tokens, width))


class Block(nn.Module):
    """A pre-norm transformer layer: attention, then a two-layer perceptron, each added to x."""

    def __init__(self, width: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attention = Attention(width)
        self.mlp = nn.Sequential(
            *(nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(DROPOUT)),
            *(nn.Linear(4 * width, width), nn.Dropout(DROPOUT)),
        )
        self.drop = nn.Dropout(DROPOUT)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens `(N, T, width)` -> the same shape."""
        x = x + self.drop(self.attention(self.norm1(x)))
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """The cells of a map `(N, channels, h, w)` as h x w tokens -> a map `(N, width, h, w)`.

    One position embedding per cell, learned on a raster of `grid` x `grid` cells (256-pixel images)
    and interpolated to any other. There is no class token: every cell is needed.
    """

    def __init__(self, channels: int, width: int, depth: int, grid: int = 16):
        super().__init__()
        self.embed = nn.Conv2d(channels, width, 1)
        self.positions = nn.Parameter(torch.zeros(1, width, grid, grid))
        self.drop = nn.Dropout(DROPOUT)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        nn.init.trunc_normal_(self.positions, std=0.02)
        for layer in self.blocks.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Embed, add the positions, attend, and put the tokens back in their places."""
        x = self.embed(features)
        size = x.shape[-2:]
        tokens = self.drop((x + resized(self.positions, size)).flatten(2).transpose(1, 2))
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens).transpose(1, 2).unflatten(2, size)


class Cascade(nn.Module):
    """The cascaded upsampler: stride 16 -> 8, 4, 2 with a skip each -> 1 without -> `channels`.

    At `width` 768 its stages have the paper's 512, 256, 128, 64 and 16 channels; they shrink in
    proportion, but not below 16: a head over 4 channels takes four times as many steps to learn
    a single slice.
    """

    def __init__(self, width: int, channels: int):
        super().__init__()
        widths = [max(16, width * part // 48) for part in (32, 16, 8, 4, 1)]
        self.enter = convolutions(width, widths[0], 1)
        ins = [w + s for w, s in zip(widths, (*reversed(SKIPS), 0), strict=False)]
        self.stages = nn.ModuleList(
            convolutions(i, o, 2) for i, o in zip(ins, widths[1:], strict=True)
        )
        self.head = nn.Conv2d(widths[-1], channels, 3, padding=1)

    def forward(self, bottleneck: Tensor, skips: list[Tensor]) -> tuple[Tensor, Tensor]:
        """`skips` run from stride 2 to 8. Returns the head's output and the last feature map."""
        x = self.enter(bottleneck)
        for stage, skip in zip(self.stages, (*reversed(skips), None), strict=True):
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = stage(x if skip is None else torch.cat([x, skip], dim=1))
        return self.head(x), x


class TransUNet(nn.Module):
    """ResNet-50 to stride 16, a transformer of `depth` layers over its cells, cascaded decoders.

    With `reconstruction` a second decoder restores the image from the shared encoder. Height and
    width must be multiples of 16; `width` (channels of a token) of 192, for whole heads and
    decoder stages.
    """

    multiple = 16

    def __init__(self, width: int, depth: int, num_classes: int = 1, reconstruction: bool = False):
        super().__init__()
        if width % (3 * HEAD):
            raise UserError(f"T2's width is {width}; it must be a multiple of {3 * HEAD}.")
        resnet = resnet50()
        # Images come in 0..1; ImageNet's weights were trained with this mean and spread.
        statistics = ResNet50_Weights.IMAGENET1K_V2.transforms()
        for name in ("mean", "std"):
            value = torch.tensor(getattr(statistics, name)).view(1, 3, 1, 1)
            self.register_buffer(name, value, persistent=False)
        self.stem = nn.Sequential(resnet.conv1, resnet.bn1, resnet.relu)
        self.pool = resnet.maxpool
        self.levels = nn.ModuleList([resnet.layer1, resnet.layer2, resnet.layer3])
        self.transformer = Transformer(1024, width, depth)
        self.segmentation = Cascade(width, num_classes)
        self.reconstruction = Cascade(width, 3) if reconstruction else None

    def forward(self, images: Tensor, reconstruct: bool = True) -> Output:
        """Images `(N, 3, H, W)` in 0..1 -> Output; `reconstruct=False` skips that decoder."""
        check_size(images, self.multiple)
        skips = [self.stem((images - self.mean) / self.std)]
        x = self.pool(skips[0])
        for level in self.levels:
            x = level(x)
            skips.append(x)
        deepest = skips.pop()  # stride 16: the transformer's input, not a skip
        bottleneck = self.transformer(deepest)
        logits, decoded = self.segmentation(bottleneck, skips)
        restored = None
        if self.reconstruction is not None and reconstruct:
            restored = self.reconstruction(bottleneck, skips)[0].sigmoid()
        features = {
            **{"encoder": skips[-1], "bottleneck": bottleneck, "decoder": decoded},
            "stride4": skips[1],  # ResNet's first level, of 256 channels
        }
        return Output(logits, features, restored)


def teacher_t2(
    width: int = 768, depth: int = 12, num_classes: int = 1, reconstruction: bool = True
) -> TransUNet:
    """T2 at the paper's size (ViT-B: 12 layers, width 768, 12 heads), with two decoders."""
    return TransUNet(width, depth, num_classes, reconstruction)


def teacher_t2_of(checkpoint: dict) -> TransUNet:
    """T2 as it was when `checkpoint` was written, its weights not yet loaded."""
    config = checkpoint["config"]
    reconstruction = config["reconstruction_weight"] > 0
    return teacher_t2(config["width"], config["depth"], checkpoint["num_classes"], reconstruction)


def load_imagenet(model: TransUNet, transformer: bool, folder: Path | None = None) -> None:
    """Fill `model` with torchvision's ImageNet weights: ResNet-50, and ViT-B/16 if `transformer`.

    The files are expected in `folder` (default: torch.hub's cache) under their own names, and
    downloaded there if missing. The class token is dropped, the position embeddings are
    interpolated to T2's raster, and a transformer with fewer layers takes the first ones. UserError
    if a file can be neither found, fetched nor used, or if T2's size is not ViT-B's.
    """
    width, depth = model.transformer.positions.shape[1], len(model.transformer.blocks)
    if transformer and (width != 768 or depth > 12):
        raise UserError(
            f"ImageNet's ViT-B/16 is 768 wide and 12 layers deep, this T2 {width} and {depth}: "
            "change --width and --depth, or take the ResNet's weights alone with "
            "--encoder-weights imagenet-resnet."
        )
    # Read by torchvision's own networks, which know the older names in these files.
    take_resnet(model, filled(resnet50(), ResNet50_Weights.IMAGENET1K_V2, folder))
    if transformer:
        take_vit(model.transformer, filled(vit_b_16(), ViT_B_16_Weights.IMAGENET1K_V1, folder))


def filled(network: nn.Module, weights, folder: Path | None) -> nn.Module:
    """`network` with torchvision's weights, from `folder` or torch.hub's cache, or downloaded."""
    where = Path(folder or Path(torch.hub.get_dir()) / "checkpoints")
    check_hash(where / weights.url.rsplit("/", 1)[-1])
    try:
        state = torch.hub.load_state_dict_from_url(
            weights.url, str(where), "cpu", progress=False, check_hash=True, weights_only=True
        )
        network.load_state_dict(state)
    except Exception as error:  # no network, no room, no right to write, a damaged or other file
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise UserError(
            f"{shown(where / weights.url.rsplit('/', 1)[-1])} could not be used or downloaded "
            f"({reason[0]}). Fetch {weights.url} elsewhere and name its folder with "
            "--weights-folder, or train with --encoder-weights none."
        ) from None
    return network


def check_hash(path: Path) -> None:
    """UserError if an existing weights file is not the one its name claims, `name-HASH.pth`: torch
    compares the hash only of what it downloads, and would take a flipped bit for a weight."""
    if not path.is_file():
        return
    named, digest = path.stem.rpartition("-")[2], hashlib.sha256(path.read_bytes()).hexdigest()
    if not digest.startswith(named):
        raise UserError(
            f"{shown(path)} is damaged or another file: its SHA-256 begins with {digest[:8]}, its "
            f"name says {named}. Remove it to have it fetched again, or put the right one there."
        )


def take_resnet(model: TransUNet, resnet: nn.Module) -> None:
    """The weights of torchvision's ResNet-50 up to its third level."""
    pairs = [(model.stem[0], resnet.conv1), (model.stem[1], resnet.bn1)]
    pairs += zip(model.levels, (resnet.layer1, resnet.layer2, resnet.layer3), strict=True)
    for own, other in pairs:
        own.load_state_dict(other.state_dict())


def take_vit(transformer: Transformer, vit: nn.Module) -> None:
    """The layers, last norm and position embeddings of torchvision's vision transformer."""
    for own, other in zip(transformer.blocks, vit.encoder.layers, strict=False):
        own.norm1.load_state_dict(other.ln_1.state_dict())
        own.norm2.load_state_dict(other.ln_2.state_dict())
        attention = other.self_attention
        joined = {"weight": attention.in_proj_weight, "bias": attention.in_proj_bias}
        own.attention.qkv.load_state_dict(joined)
        own.attention.out.load_state_dict(attention.out_proj.state_dict())
        own.mlp.load_state_dict(other.mlp.state_dict())
    transformer.norm.load_state_dict(vit.encoder.ln.state_dict())
    places = vit.encoder.pos_embedding.detach()[:, 1:]  # without the class token's
    side = round(places.shape[1] ** 0.5)
    raster = places.transpose(1, 2).unflatten(2, (side, side))
    transformer.positions.data.copy_(resized(raster, transformer.positions.shape[-2:]))


def resized(raster: Tensor, size: tuple[int, int]) -> Tensor:
    """Position embeddings `(1, width, h, w)` interpolated to another raster."""
    if raster.shape[-2:] == size:
        return raster
    return F.interpolate(raster, size, mode="bicubic", align_corners=False)
