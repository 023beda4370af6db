"""A training run: its folder, its data, what it writes, how it is taken up again."""

import os
import platform
import subprocess
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from common import checkpoint, figures
from common.config import plain, to_json
from common.device import has_bf16, pick_device
from common.files import (
    ROOT,
    UserError,
    check_run,
    lock_folder,
    new_run,
    read_csv,
    read_json,
    require_space,
    shown,
    write_csv,
    write_json,
)
from common.interruption import Interruption
from common.loading import SliceDataset
from common.settings import NOT_LEARNED, TrainConfig
from common.slices import SliceSet, read_set
from common.splits import read_splits
from common.unet import parameters

# What may differ between a run and its continuation. More `epochs` stretch the cosine, which then
# goes on from where the longer one would be. `teacher` is a path, and may have moved: the distiller
# itself remembers which weights it was. `weights_folder` is read for the first weights alone.
FREE_ON_RESUME = NOT_LEARNED | {"epochs", "teacher", "weights_folder"}
# Results of the weights that were there before an epoch, or of masks that are made anew.
STALE = ("inference.json", "summary.json", "metrics_per_case.csv", "report.html")


@dataclass
class Run:
    """A training about to start: its folder, its stage, its device, its data."""

    folder: Path
    stage: str
    device: torch.device
    data: SliceSet
    splits: dict[str, list[str]]
    patients: dict[str, list[str]]  # cases: `train`, `val`, of KD `teacher`, `unlabelled`, ...
    train: SliceDataset
    val: SliceDataset
    rank: int = 0
    world: int = 1
    lock: object = None  # held as long as the run is
    saved: int = 0  # the epoch that last.pt holds
    best: tuple[int, float] = (0, -1.0)  # epoch and validation Dice of best.pt
    unsaved: dict | None = None  # what it would hold of a later one, which --save-every left out
    patient_of: dict[str, str] = field(default_factory=dict)  # of a teacher's cases elsewhere
    interruption: Interruption = field(default_factory=Interruption)

    @property
    def classes(self) -> int:
        """Number of logit channels."""
        return self.data.classes

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
    if not any(s.foreground for s in train.slices):
        raise UserError(f"{shown(data.folder)}: no slice of {share} shows an organ to learn.")
    patients = {"train": splits[share], "val": splits["val"]}
    run = Run(folder, stage.name, device, data, splits, patients, train, val, rank, world, lock)
    run.say(
        f"{len(train)} training slices of {len(data.patients_of(splits[share]))} patients "
        f"({share}), {len(val)} validation slices of {len(data.patients_of(splits['val']))}; "
        f"{run.size}x{run.size} pixels; "
        f"{device}{' bf16' if config.bf16 and has_bf16(device) else ' float32'}"
    )
    if config.deterministic:
        # cuBLAS reads it when it starts; without it PyTorch refuses to promise anything.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # Some operations have no such form on a GPU (of several organs the cross-entropy): PyTorch
        # then warns and names them.
        torch.use_deterministic_algorithms(True, warn_only=True)
    torch.manual_seed(config.seed)
    return run


def prepare(objective: nn.Module, run: Run, config: TrainConfig) -> None:
    """Make the run folder ready and write config.json, once nothing else can be refused.

    UserError if the network cannot take the slices' size or the disk is too small for the run's
    checkpoints (weights and AdamW's two moments, and a second copy while one is replaced).
    """
    model = objective.model
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, run.size, run.size, device=run.device))
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


def describe_run(objective: nn.Module, run: Run, config: TrainConfig) -> dict:
    """config.json: the flags, the sizes, and the machine and code that made the run."""
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    gpu = torch.cuda.get_device_name(run.device) if run.device.type == "cuda" else None
    extra = parameters(objective) - parameters(objective.model)
    return {
        "stage": run.stage,
        "config": to_json(config),
        "parameters": parameters(objective.model),
        "objective_parameters": extra,
        "size": run.size,
        "classes": run.data.organs,
        "patients": run.patients,
        "environment": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": version("torchvision"),
            "device": gpu or platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "processes": run.world,
            "commit": commit or None,
        },
    }


def of_data(data: SliceSet) -> dict:
    """What a checkpoint remembers of its data set: inference needs it, a resumed run finds it."""
    kept = ("window", "axis", "channel", "labels")
    return {
        "classes": data.classes,
        "organs": data.organs,
        "colours": data.colours,
        "size": data.size,
        **{name: data.info.get(name) for name in kept},
    }


def save_epoch(objective, optimizer, run: Run, config, log: list[dict], is_best: bool) -> None:
    """The epoch's files: weights before the log, so that the log never promises too much."""
    whose = run.patient_of | run.data.patients
    about = {
        "stage": run.stage,
        "config": to_json(config),
        **of_data(run.data),
        "parameters": parameters(objective.model),
        "patients": run.patients,
        "patient_of": {c: whose.get(c, c) for cases in run.patients.values() for c in cases},
        "slices": run.data.digest(run.patients["train"]),
        "processes": run.world,
        "epoch": len(log),
        "val_dice": float(log[-1]["val_dice"]),
    }
    for stale in STALE:
        (run.folder / stale).unlink(missing_ok=True)
    if is_best:
        checkpoint.save(run.folder / "best.pt", {**about, "model": objective.model.state_dict()})
    state = {"objective": objective.state_dict(), "optimizer": optimizer.state_dict()}
    if len(log) % config.save_every == 0 or len(log) == config.epochs:
        checkpoint.save(run.folder / "last.pt", {**about, **state, "log": log})
        run.saved, run.unsaved = len(log), None
    else:
        run.unsaved = copied({**about, **state, "log": log})
    # Twenty drawings a run: each takes as long as many steps of a small student.
    write_log(run, log, len(log) % -(-config.epochs // 20) == 0 or len(log) == config.epochs)


def write_log(run: Run, log: list[dict], drawn: bool = True) -> None:
    """log.csv, and curves.png if it is to be `drawn`."""
    if drawn:
        figures.curves(run.folder / "curves.png", log, f"{run.stage}: {run.folder.name}")
    write_csv(run.folder / "log.csv", log)


def copied(value):
    """A state as it is now, in the CPU's memory: training goes on in the tensors themselves."""
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


def changed_settings(config: TrainConfig, before: dict, free: set[str]) -> list[str]:
    """Which settings of `before`, a run's config as plain values, are others now: `lr: 0.1 -> 0.2`.

    Those in `free` may differ. A flag that is younger than the run had its default then.
    """
    then = {**to_json(type(config)()), **{name: plain(value) for name, value in before.items()}}
    now = {name: value for name, value in to_json(config).items() if name not in free}
    return [f"{k}: {then[k]} -> {value}" for k, value in now.items() if then[k] != value]


def take_up(objective, optimizer, run: Run, config: TrainConfig) -> list[dict]:
    """Fill objective and optimizer from last.pt, if there is one; returns the log so far.

    UserError if the run was made with other settings, on other patients or with another teacher,
    is longer than `config.epochs` already, or has lost its last.pt.
    """
    path, log = run.folder / "last.pt", run.folder / "log.csv"
    if not path.exists():
        if log.exists() and len(read_csv(log)) >= config.save_every:
            raise UserError(
                f"{shown(path)} is gone, and nothing can go on without it; best.pt would be "
                "replaced. Train under another --name, or anew with --overwrite."
            )
        run.say(f"nothing to resume in {shown(run.folder)}: starting at epoch 1")
        return []
    state = checkpoint.load(path, run.stage)
    changed = changed_settings(config, state["config"], FREE_ON_RESUME)
    if any(names != run.patients.get(part) for part, names in state["patients"].items()):
        changed.append("the split: other patients")
    if state.get("slices", before := run.data.digest(run.patients["train"])) != before:
        changed.append("the training patients' slices: another manifest.csv")
    now = of_data(run.data)
    changed += [
        f"the data set's {name}: {state[name]} -> {now[name]}"
        for name in now
        if name != "colours" and name in state and state[name] != now[name]
    ]
    if len(state["log"]) > config.epochs:
        changed.append(f"epochs: {len(state['log'])} are done, {config.epochs} are asked for")
    if changed:
        raise UserError(
            f"{shown(run.folder)} was made with another configuration ({'; '.join(changed)}). "
            "Resume it without such flags, or train under another --name."
        )
    if config.epochs != (before := state["config"]["epochs"]):
        run.say(f"{before} epochs were planned, now {config.epochs}: the cosine is another one")
    if run.world != (before := state.get("processes", run.world)):
        run.say(f"note: {before} processes before, {run.world} now, each with --batch-size slices")
    checkpoint.load_weights(objective, state["objective"], path)
    optimizer.load_state_dict(state["optimizer"])
    try:  # maybe of an epoch that a kill has lost
        chosen = checkpoint.load(run.folder / "best.pt", run.stage)
        run.best = chosen["epoch"], chosen["val_dice"]
    except UserError as error:
        run.best = (0, -1.0)
        left = len(state["log"]) < config.epochs
        later = "The best of the epochs to come will be kept."
        run.say(f"note: {error} {later if left else 'inference.py --weights last does without.'}")
    run.say(f"resuming {shown(run.folder)} after epoch {len(state['log'])}")
    return state["log"]
