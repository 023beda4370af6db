"""One training loop for every stage: `start` a run, `fit` an objective, `evaluate` a model.

`fit` sums the losses that the objective returns, steps, and logs them by name; it knows nothing
else of the stage. The loop never waits for the device inside an epoch: losses stay tensors until
its end. Every epoch is seeded by its number, so a resumed run continues bit for bit.
"""

import math
import os
import platform
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torchvision
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import SequentialSampler, Subset
from tqdm import tqdm

from common import checkpoint, figures, scores
from common.config import TrainConfig, to_json
from common.files import ROOT, UserError, new_run, require_space, shown, write_csv, write_json
from common.slices import (
    SliceDataset,
    SliceSet,
    TrainSampler,
    loader,
    read_set,
    read_splits,
)
from common.unet import parameters

# What may differ between a run and its continuation: nothing that changes the result.
FREE_ON_RESUME = {
    *("resume", "overwrite", "epochs", "data", "device", "workers", "cache_mb", "save_every"),
    "teacher",  # its folder may have moved; its weights are what matters
}


@dataclass
class Run:
    """A training about to start: its folder, its stage, its device, its data."""

    folder: Path
    stage: str
    device: torch.device
    data: SliceSet
    train: SliceDataset
    val: SliceDataset
    rank: int = 0
    world: int = 1

    @property
    def classes(self) -> int:
        """Number of logit channels."""
        return self.data.classes

    @property
    def size(self) -> int:
        """Height and width of the slices."""
        return int(self.data.info["size"])

    def say(self, text: str) -> None:
        """Print from the first process only."""
        if self.rank == 0:
            print(text, flush=True)


def start(config: TrainConfig, script: str, share: str) -> Run:
    """Seed, choose the device, make the run folder, load the slices of `share` and of val.

    `script` is the stage's train.py. Under torchrun it joins the process group. UserError if the
    data, the splits, the device or the run folder cannot be used; nothing is written then.
    """
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = pick_device(config.device)
    if world > 1 and not dist.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
            device = torch.device("cuda", torch.cuda.current_device())
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    data = read_set(config.data)
    splits = read_splits(data, config.splits, (share, "val"))
    train = SliceDataset(data, data.of(splits[share]), config.cache_mb)
    val = SliceDataset(data, data.of(splits["val"]), config.cache_mb)
    stage = Path(script).resolve().parent
    folder = stage / "runs" / config.name
    if rank == 0:
        require_space(folder, 100)
        new_run(folder, config.resume, config.overwrite)
    if world > 1:
        dist.barrier()
    run = Run(folder, stage.name, device, data, train, val, rank, world)
    run.say(
        f"{len(train)} training slices of {len(splits[share])} patients ({share}), {len(val)} "
        f"validation slices of {len(splits['val'])}; {run.size}x{run.size} pixels; "
        f"{device}{' bf16' if config.bf16 and has_bf16(device) else ' float32'}"
    )
    torch.manual_seed(config.seed)
    return run


def pick_device(name: str) -> torch.device:
    """`auto` is the first GPU if there is one. UserError if the device is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name} is unknown; use auto, cpu, cuda or cuda:N.") from None
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


def to_device(batch: dict, device: torch.device, channels_last: bool) -> dict:
    """Images to `(N, 3, H, W)` on the device (grey replicated there), masks beside them."""
    images = batch["image"].to(device, non_blocking=True).expand(-1, 3, -1, -1)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    images = images.contiguous(memory_format=layout)
    return {**batch, "image": images, "mask": batch["mask"].to(device, non_blocking=True)}


@torch.no_grad()
def evaluate(model: nn.Module, dataset: SliceDataset, run: Run, config: TrainConfig) -> dict:
    """`scores.summary` of a model on a data set, at threshold 0.5; processes share the work."""
    model.eval()
    mine = Subset(dataset, range(run.rank, len(dataset), run.world))
    cases, counts = [], []
    for batch in loader(mine, config.batch_size, SequentialSampler(mine)):
        batch = to_device(batch, run.device, config.channels_last)
        with autocast(run.device, config.bf16):
            logits = model(batch["image"], reconstruct=False).logits
        counts.append(scores.count(scores.predicted(logits), batch["mask"]))
        cases += batch["case"]
    counts = torch.cat(counts).sum(1).cpu().numpy() if counts else np.zeros((0, 3), np.int64)
    if run.world > 1:
        parts = [None] * run.world
        dist.all_gather_object(parts, (cases, counts))
        cases = [case for part, _ in parts for case in part]
        counts = np.concatenate([part for _, part in parts])
    return scores.summary(cases, counts)


def train_one_epoch(objective, batches, optimizer, schedule, run: Run, config) -> dict[str, float]:
    """One pass; returns the mean of each loss over the slices seen.

    UserError, naming the step's slices, if a loss was not finite: the caller has saved nothing
    of this epoch then.
    """
    objective.train()
    values, sizes, names = [], [], []
    for batch in tqdm(batches, leave=False, disable=True if run.rank else None):
        batch = to_device(batch, run.device, config.channels_last)
        with autocast(run.device, config.bf16):
            losses = objective(batch)
        optimizer.zero_grad(set_to_none=True)
        sum(losses.values()).backward()
        if config.clip:
            nn.utils.clip_grad_norm_(_trained(objective), config.clip)
        optimizer.step()
        schedule.step()
        values.append(torch.stack([loss.detach() for loss in losses.values()]))
        sizes.append(len(batch["name"]))
        names.append(batch["name"])
    table = torch.stack(values).double().cpu()  # the one wait for the device
    broken = (~table.isfinite()).any(1).nonzero()
    if len(broken):
        step = int(broken[0])
        terms = [n for n, ok in zip(losses, table[step].isfinite(), strict=True) if not ok]
        raise UserError(
            f"step {step + 1}: the loss {', '.join(terms)} is not finite. Slices: "
            f"{', '.join(names[step])}. Lower --lr, or look at these files; last.pt holds the "
            "last good epoch."
        )
    weights = torch.tensor(sizes, dtype=torch.float64)
    means = (table * weights[:, None]).sum(0) / weights.sum()
    return dict(zip(losses, means.tolist(), strict=True))


def fit(objective: nn.Module, run: Run, config: TrainConfig) -> None:
    """Train `objective.model` on `run.train`; keep the epoch with the best validation Dice.

    AdamW, linear warm-up, cosine to zero, gradient clipping. Writes config.json, log.csv,
    curves.png, last.pt and best.pt into the run folder. The score that chooses `best.pt` is the
    mean Dice over the validation patients. UserError if the loss stops being finite, or if
    `--resume` finds another configuration.
    """
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    objective.to(run.device, memory_format=layout)
    sampler = TrainSampler(
        run.train.slices, config.foreground, config.augment, config.seed, run.rank, run.world
    )
    pin, workers = run.device.type == "cuda", _workers(config.workers, run.device)
    batches = loader(run.train, config.batch_size, sampler, workers, pin)
    optimizer = torch.optim.AdamW(
        _trained(objective), config.lr, weight_decay=config.weight_decay, fused=True
    )
    log = _resume(objective, optimizer, run, config) if config.resume else []
    schedule = _schedule(optimizer, config, len(batches), done=len(log))
    extra = parameters(objective) - parameters(objective.model)
    run.say(f"{parameters(objective.model):,} parameters, {extra:,} more in the training objective")
    _write_config(objective, run, config)
    trained = _parallel(objective, run)
    best = max((row["val_dice"] for row in log), default=-1.0)
    for epoch in range(len(log) + 1, config.epochs + 1):
        began = time.perf_counter()
        sampler.epoch = epoch
        _seed_epoch(config.seed, epoch, run.rank)
        rate = optimizer.param_groups[0]["lr"]
        try:
            losses = train_one_epoch(trained, batches, optimizer, schedule, run, config)
        except UserError as error:
            raise UserError(f"epoch {epoch}, {error}") from None
        seconds = time.perf_counter() - began
        val = evaluate(objective.model, run.val, run, config)
        dice, pooled = val["per_patient"]["dice"]["mean"] or 0.0, val["pooled"]["dice"] or 0.0
        log.append({"epoch": epoch, "lr": rate, **losses, "val_dice": dice, "val_pooled": pooled})
        mark = " *" if dice > best else ""
        run.say(
            f"epoch {epoch:>3}/{config.epochs}  "
            + "  ".join(f"{name} {value:.4f}" for name, value in losses.items())
            + f"  val Dice {dice:.4f}{mark}  {seconds:.1f} s, "
            f"{len(run.train) / seconds:.0f} slices/s"
        )
        if run.rank == 0:
            _save(objective, optimizer, run, config, log, is_best=dice > best)
        best = max(best, dice)
    if run.world > 1:
        dist.barrier()
        dist.destroy_process_group()
    chosen = max(log, key=lambda row: row["val_dice"])
    run.say(
        f"best epoch {chosen['epoch']}: validation Dice {chosen['val_dice']:.4f} per patient, "
        f"{chosen['val_pooled']:.4f} pooled -> {shown(run.folder / 'best.pt')}"
    )


def _trained(objective: nn.Module) -> list[nn.Parameter]:
    return [p for p in objective.parameters() if p.requires_grad]


def _workers(wanted: int, device: torch.device) -> int:
    if wanted >= 0:
        return wanted
    return min(8, max(0, (os.cpu_count() or 1) - 1)) if device.type == "cuda" else 0


def _seed_epoch(seed: int, epoch: int, rank: int) -> None:
    torch.manual_seed(int(np.random.SeedSequence([seed, epoch, rank]).generate_state(1)[0]))


def _schedule(optimizer, config: TrainConfig, steps: int, done: int):
    """Linear warm-up, then half a cosine to 0 at the last step; a function of the step alone."""
    total = config.epochs * steps
    warm = max(1, round(config.warmup * total))

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))

    for group in optimizer.param_groups:
        group["initial_lr"] = config.lr
    # LambdaLR takes one step itself when it is made, hence the - 1.
    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor, last_epoch=done * steps - 1)


def _parallel(objective: nn.Module, run: Run) -> nn.Module:
    """The objective, under torchrun with its gradients averaged over the processes."""
    if run.world == 1:
        return objective
    if run.device.type == "cuda":
        objective.model = nn.SyncBatchNorm.convert_sync_batchnorm(objective.model)
    return DistributedDataParallel(objective)


def _save(objective, optimizer, run: Run, config, log: list[dict], is_best: bool) -> None:
    """The epoch's files: weights before the log, so that the log never promises too much."""
    about = {
        "stage": run.stage,
        "config": to_json(config),
        "classes": run.classes,
        "size": run.size,
        "parameters": parameters(objective.model),
        "epoch": len(log),
        "val_dice": float(log[-1]["val_dice"]),
    }
    if is_best:
        checkpoint.save(run.folder / "best.pt", {**about, "model": objective.model.state_dict()})
    if len(log) % config.save_every == 0 or len(log) == config.epochs:
        state = {"objective": objective.state_dict(), "optimizer": optimizer.state_dict()}
        checkpoint.save(run.folder / "last.pt", {**about, **state, "log": log})
        figures.curves(run.folder / "curves.png", log, f"{run.stage}: {run.folder.name}")
    write_csv(run.folder / "log.csv", log)


def _resume(objective, optimizer, run: Run, config: TrainConfig) -> list[dict]:
    """Fill objective and optimizer from last.pt, if there is one; returns the log so far."""
    path = run.folder / "last.pt"
    if not path.exists():
        run.say(f"nothing to resume in {shown(run.folder)}: starting at epoch 1")
        return []
    state = checkpoint.load(path, run.stage)
    now, then = to_json(config), state["config"]
    changed = [
        f"{name}: {then.get(name)} -> {value}"
        for name, value in now.items()
        if name not in FREE_ON_RESUME and then.get(name) != value
    ]
    if changed:
        raise UserError(
            f"{shown(run.folder)} was made with another configuration ({'; '.join(changed)}). "
            "Resume it with the same flags, or train under another --name."
        )
    checkpoint.load_weights(objective, state["objective"], path)
    optimizer.load_state_dict(state["optimizer"])
    run.say(f"resuming {shown(run.folder)} after epoch {len(state['log'])}")
    return state["log"]


def _write_config(objective: nn.Module, run: Run, config: TrainConfig) -> None:
    """config.json: the flags, the sizes, and the machine and code that made the run."""
    if run.rank:
        return
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    gpu = torch.cuda.get_device_name(run.device) if run.device.type == "cuda" else None
    environment = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "device": gpu or platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "processes": run.world,
        "commit": commit or None,
    }
    content = {
        "stage": run.stage,
        "config": to_json(config),
        "parameters": parameters(objective.model),
        "objective_parameters": parameters(objective) - parameters(objective.model),
        "size": run.size,
        "classes": run.data.info["classes"],
        "environment": environment,
    }
    write_json(run.folder / "config.json", content)
