"""The hardware: which device, number formats, batches, BatchNorm folded away."""

import os
from itertools import pairwise

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from common.errors import UserError


def pick_device(name: str, deterministic: bool = False) -> torch.device:
    """The device of that name, made the current one; `auto` is the first GPU if there is one.

    UserError if the device is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name} is unknown; use auto, cpu, cuda or cuda:N.") from None
    if device.type not in ("cpu", "cuda") or device.type == "cpu" and device.index:
        raise UserError(f"--device {name} is not supported; use auto, cpu, cuda or cuda:N.")
    if device.type == "cpu":
        return device
    if (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"--device {name}: PyTorch sees {torch.cuda.device_count()} CUDA devices here. "
            "Use --device cpu, or install a PyTorch build that matches the GPU's driver."
        )
    # Some calls use the current device, whatever their tensors': all work goes to one GPU.
    index = torch.cuda.current_device() if device.index is None else device.index
    torch.cuda.set_device(index)
    # What autocast leaves in float32 (losses, --no-amp) needs the precision: no TF32.
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    # Batches of a run have one size, so trying cuDNN's algorithms once pays; which of them is the
    # fastest may differ between two runs.
    torch.backends.cudnn.benchmark = not deterministic
    return torch.device("cuda", index)


def half_type(device: torch.device) -> torch.dtype | None:
    """The 16-bit type that is fast on this hardware: bfloat16, on older GPUs float16.

    None on a CPU without bfloat16, where autocast is slower than float32.
    """
    if device.type == "cuda":
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if bf16 else torch.float16
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    bf16 = capabilities.get("amx_bf16") or capabilities.get("avx512_bf16")
    return torch.bfloat16 if bf16 else None


def autocast(device: torch.device, wanted: bool):
    """The 16-bit context of a forward pass, where it pays."""
    half = half_type(device)
    return torch.autocast(device.type, half, enabled=wanted and half is not None)


def number_format(device: torch.device, amp: bool) -> str:
    """What a forward pass computes in, as printed: bfloat16, float16 or float32."""
    return str(amp and half_type(device) or torch.float32).removeprefix("torch.")


def grad_scaler(device: torch.device, amp: bool) -> torch.amp.GradScaler:
    """Keeps small gradients from vanishing in float16, whose exponent is short; in other formats it
    does nothing. A step whose gradients overflow is left out, and the next ones are scaled less."""
    return torch.amp.GradScaler(
        device.type, enabled=number_format(device, amp) == "float16", init_scale=2.0**12
    )


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
    """Loader processes: -1 means none for training on a CPU, up to 8 on a GPU."""
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
