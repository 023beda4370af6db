"""A training run: its folder, its data, what it writes."""

import os
import platform
import subprocess
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from common.config import to_json
from common.dataset.loading import SliceDataset
from common.dataset.slices import SliceSet, read_set
from common.dataset.splits import read_splits
from common.device import grad_scaler, number_format, pick_device
from common.errors import UserError
from common.evaluation import figures
from common.files import (
    ROOT,
    check_run,
    lock_folder,
    new_run,
    read_json,
    require_space,
    shown,
    write_csv,
    write_json,
)
from common.models.unet import parameters
from common.settings import TrainConfig
from common.training import checkpoint
from common.training.interruption import Interruption

# Outputs that a new epoch, or new masks, invalidate.
STALE = ("inference.json", "summary.json", "metrics_per_case.csv", "report.html")


@dataclass
class Run:
    """A training about to start: its folder, its stage, its device, its data."""

    folder: Path
    stage: str
    device: torch.device
    data: SliceSet
    splits: dict[str, list[str]]
    cases: dict[str, list[str]]  # of `train`, `val`, of KD `teacher`, `unlabelled`, ...
    train: SliceDataset
    val: SliceDataset
    rank: int = 0
    world: int = 1
    lock: object = None  # held as long as the run is
    resumes: bool = False  # whether there is a last.pt to continue from
    saved: int = 0  # the epoch that last.pt holds
    best: tuple[int, float] = (0, -1.0)  # epoch and validation Dice of best.pt
    unsaved: dict | None = None  # newest state not yet written, which --save-every left out
    patient_of: dict[str, str] = field(default_factory=dict)  # of a teacher's cases elsewhere
    scaler: torch.amp.GradScaler | None = None  # of float16's gradients; idle in other formats
    interruption: Interruption = field(default_factory=Interruption)

    @property
    def num_classes(self) -> int:
        """Number of logit channels."""
        return self.data.num_classes

    @property
    def size(self) -> int:
        """Height and width of the slices."""
        return self.data.size

    def say(self, text: str) -> None:
        """Print from the first process only."""
        if self.rank == 0:
            print(text, flush=True)


def start(config: TrainConfig, script: str, share: str) -> Run:
    """Seed, choose the device, load the slices of `share` and of val. Writes nothing yet.

    `script` is the stage's train.py. Under torchrun it joins the process group. UserError if the
    data, the splits or the device cannot be used, or if the run folder is taken.
    """
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    stage = Path(script).resolve().parent
    folder = stage / "runs" / config.name
    check_run(folder, config.resume, config.overwrite)
    lock = lock_folder(folder) if rank == 0 else None
    device = pick_device(config.device, config.deterministic)
    if world > 1 and not dist.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
            device = torch.device("cuda", torch.cuda.current_device())
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    data = read_set(config.data)
    splits = read_splits(data, config.splits, (share, "val"))
    train = SliceDataset(data, data.of(splits[share]), config.cache_mb)
    val = SliceDataset(data, data.of(splits["val"]), config.cache_mb)
    if not any(s.foreground for s in train.slices):
        raise UserError(f"{shown(data.folder)}: no slice of {share} shows a class to learn.")
    patients = {"train": splits[share], "val": splits["val"]}
    run = Run(folder, stage.name, device, data, splits, patients, train, val, rank, world, lock)
    run.scaler = grad_scaler(device, config.amp)
    run.resumes = config.resume and (folder / "last.pt").exists()
    run.say(
        f"{len(train)} training slices of {len(data.patients_of(splits[share]))} patients "
        f"({share}), {len(val)} validation slices of {len(data.patients_of(splits['val']))}; "
        f"{run.size}x{run.size} pixels; "
        f"{device} {number_format(device, config.amp)}"
    )
    if config.deterministic:
        # cuBLAS reads it when it starts; without it PyTorch refuses to promise anything.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # Some operations have no such form on a GPU (cross-entropy for several classes): PyTorch
        # then warns and names them.
        torch.use_deterministic_algorithms(True, warn_only=True)
    torch.manual_seed(config.seed)
    return run


def prepare(objective: nn.Module, run: Run, config: TrainConfig) -> None:
    """Make the run folder ready and write config.json, once nothing else can be refused.

    UserError if the network cannot take the slices' size or a batch of one of them, or if the disk
    is too small for the run's checkpoints (weights and AdamW's two moments, and a second copy while
    one is replaced).
    """
    model = objective.model
    with torch.no_grad():
        output = model.eval()(torch.zeros(1, 3, run.size, run.size, device=run.device))
    if any(value.shape[-2:].numel() == 1 for value in output.features.values()):
        _check_last_batch(run, config)
    if run.rank == 0:
        require_space(run.folder, 50 + 32e-6 * parameters(objective))
        new_run(run.folder, keep=config.resume)
        about = describe_run(objective, run, config)
        path = run.folder / "config.json"
        before = read_json(path) if config.resume and path.exists() else {}
        earlier = before.get("earlier_environments", [])
        if before.get("environment", about["environment"]) != about["environment"]:
            earlier = [*earlier, before["environment"]]
        write_json(path, about | ({"earlier_environments": earlier} if earlier else {}))
    if run.world > 1:
        dist.barrier()


def _check_last_batch(run: Run, config: TrainConfig) -> None:
    """UserError if a batch holds one slice where the network's deepest map is one pixel: BatchNorm
    cannot train on a single value."""
    own = -(-len(run.train) // run.world)
    if "unlabelled" in run.cases or own % config.batch_size != 1 % config.batch_size:
        return
    which = "is one slice" if config.batch_size == 1 else f"leaves one of {own} slices alone"
    raise UserError(
        f"--batch-size {config.batch_size} {which}, and at {run.size}x{run.size} pixels the "
        "network's deepest map is one pixel: BatchNorm cannot train on a single value. Choose "
        f"another --batch-size, or make the data set again with --size {2 * run.size} or more."
    )


def describe_run(objective: nn.Module, run: Run, config: TrainConfig) -> dict:
    """config.json: the flags, the sizes, and the machine and code that made the run."""
    gpu = torch.cuda.get_device_name(run.device) if run.device.type == "cuda" else None
    extra = parameters(objective) - parameters(objective.model)
    return {
        "stage": run.stage,
        "config": to_json(config),
        "parameters": parameters(objective.model),
        "objective_parameters": extra,
        "size": run.size,
        "classes": run.data.classes,
        "patients": run.cases,
        "environment": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": version("torchvision"),
            "device": gpu or platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "processes": run.world,
            **code_version(),
        },
    }


def code_version() -> dict[str, str | bool | None]:
    """The repository's `commit`, and whether tracked files have changed since (`code_changed`);
    None where there is no git, or where the repository is a copy inside another one."""
    words = ("rev-parse --show-toplevel", "rev-parse HEAD", "status --porcelain -uno")
    env = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}  # a hook's, of another
    about = {"cwd": ROOT, "env": env, "capture_output": True, "text": True, "check": True}
    git = ("git", "--no-optional-locks")  # many trainings may start at once
    try:
        answers = [subprocess.run([*git, *w.split()], **about).stdout.strip() for w in words]
    except (OSError, subprocess.CalledProcessError):
        answers = ["", "", ""]
    top, commit, changes = answers
    if not top or Path(top).resolve() != ROOT:
        return {"commit": None, "code_changed": None}
    return {"commit": commit, "code_changed": bool(changes)}


def of_data(data: SliceSet) -> dict:
    """What a checkpoint remembers of its data set: inference needs it, a resumed run finds it."""
    kept = ("window", "axis", "channel", "labels")
    return {
        "num_classes": data.num_classes,
        "classes": data.classes,
        "colours": data.colours,
        "size": data.size,
        **{name: data.info.get(name) for name in kept},
    }


def save_epoch(objective, optimizer, run: Run, config, log: list[dict], is_best: bool) -> None:
    """The epoch's files: weights before the log, so that the log never lists an epoch that is not
    saved."""
    patient_of = run.patient_of | run.data.patients
    about = {
        "stage": run.stage,
        "config": to_json(config),
        **of_data(run.data),
        "parameters": parameters(objective.model),
        "patients": run.cases,
        "patient_of": {c: patient_of.get(c, c) for cases in run.cases.values() for c in cases},
        "slices": run.data.digest(run.cases["train"]),
        "processes": run.world,
        "epoch": len(log),
        "val_dice": float(log[-1]["val_dice"]),
    }
    for stale in STALE:
        (run.folder / stale).unlink(missing_ok=True)
    if is_best:
        checkpoint.save(run.folder / "best.pt", {**about, "model": objective.model.state_dict()})
    state = {"objective": objective.state_dict(), "optimizer": optimizer.state_dict()}
    state["scaler"] = run.scaler.state_dict()
    if len(log) % config.save_every == 0 or len(log) == config.epochs:
        checkpoint.save(run.folder / "last.pt", {**about, **state, "log": log})
        run.saved, run.unsaved = len(log), None
    else:
        run.unsaved = copied({**about, **state, "log": log})
    # Twenty drawings per run: each takes as long as many steps of a small student.
    write_log(run, log, len(log) % -(-config.epochs // 20) == 0 or len(log) == config.epochs)


def write_log(run: Run, log: list[dict], drawn: bool = True) -> None:
    """log.csv, and curves.png if `drawn`."""
    if drawn:
        figures.curves(run.folder / "curves.png", log, f"{run.stage}: {run.folder.name}")
    write_csv(run.folder / "log.csv", log)


def copied(value):
    """A state as it is now, in the CPU's memory: training continues in the tensors themselves."""
    if torch.is_tensor(value):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {name: copied(part) for name, part in value.items()}
    return [copied(part) for part in value] if isinstance(value, list) else value


def save_the_rest(run: Run) -> None:
    """last.pt of the last finished epoch, if `--save-every` has left it out: the run ends here."""
    if run.unsaved:
        checkpoint.save(run.folder / "last.pt", run.unsaved)
        run.saved, run.unsaved = run.unsaved["epoch"], None
