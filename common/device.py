"""The hardware: which device, number formats, batches, BatchNorm folded away."""

import os
from itertools import pairwise

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from common.files import UserError


def pick_device(name: str) -> torch.device:
    """`auto` is the first GPU if there is one. UserError if the device is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name} is unknown; use auto, cpu, cuda or cuda:N.") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name} is not supported; use auto, cpu, cuda or cuda:N.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"--device {name}: PyTorch sees {torch.cuda.device_count()} CUDA devices here. "
            "Use --device cpu, or install a PyTorch build that matches the GPU's driver."
        )
    return device


def has_bf16(device: torch.device) -> bool:
    """Whether bfloat16 is computed in hardware: on a CPU without it, autocast is slower."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def autocast(device: torch.device, wanted: bool):
    """The bf16 context of a forward pass, where it pays."""
    enabled = wanted and has_bf16(device)
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def layout(channels_last: bool) -> torch.memory_format:
    """The memory format of images and convolution weights."""
    return torch.channels_last if channels_last else torch.contiguous_format


def to_device(batch: dict, device: torch.device, channels_last: bool) -> dict:
    """Images to `(N, 3, H, W)` on the device (grey replicated there), masks, if any, too."""
    moved = {}
    if "mask" in batch:
        moved["mask"] = batch["mask"].to(device, non_blocking=True)
    for name in ("image", "unlabelled"):
        if name in batch:
            images = batch[name].to(device, non_blocking=True).expand(-1, 3, -1, -1)
            moved[name] = images.contiguous(memory_format=layout(channels_last))
    return {**batch, **moved}


def loader_workers(wanted: int, device: torch.device) -> int:
    """Loader processes: -1 means none beside a CPU training, up to 8 beside a GPU."""
    if wanted >= 0:
        return wanted
    return min(8, max(0, (os.cpu_count() or 1) - 1)) if device.type == "cuda" else 0


def fuse(model: nn.Module) -> None:
    """Fold every BatchNorm2d that follows a Conv2d into it, in place: in an nn.Sequential, and in
    torchvision's ResNet blocks (conv1 and bn1, and so on)."""
    for block in list(model.modules()):
        names = [name for name, _ in block.named_children()]
        if isinstance(block, nn.Sequential):
            pairs = list(pairwise(names))
        else:
            pairs = [(n, n.replace("conv", "bn")) for n in names if n.startswith("conv")]
        for conv, norm in ((c, n) for c, n in pairs if n in names):
            first, second = getattr(block, conv), getattr(block, norm)
            if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
                setattr(block, conv, fuse_conv_bn_eval(first, second))
                setattr(block, norm, nn.Identity())
