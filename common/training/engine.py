"""One training loop for every stage: `fit` an objective, `evaluate` a model.

`fit` sums the losses that the objective returns, steps, and logs them by name; it knows nothing
else of the stage. The loop never waits for the device inside an epoch: losses stay tensors until
its end. Every epoch is seeded by its number, so a resumed run continues bit for bit.
"""

import math
import time
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Subset
from tqdm import tqdm

from common.dataset.loading import SliceDataset, TrainSampler, loader, unbroken
from common.device import autocast, layout, loader_workers, to_device
from common.errors import UserError
from common.evaluation import metrics
from common.files import shown
from common.models.unet import parameters, predicted
from common.settings import TrainConfig
from common.training.resume import take_up
from common.training.runs import Run, prepare, save_epoch, save_the_rest, write_log


@torch.no_grad()
def evaluate(model: nn.Module, dataset: SliceDataset, run: Run, config: TrainConfig) -> dict:
    """`metrics.summary` of a model on a data set, at probability 0.5; processes share the work."""
    model.eval()
    own_slices = Subset(dataset, range(run.rank, len(dataset), run.world))
    cases, counts = [], [torch.zeros(0, len(run.data.classes), 3, dtype=torch.long)]
    for batch in loader(own_slices, config.batch_size):
        batch = to_device(batch, run.device, config.channels_last)
        with autocast(run.device, config.amp):
            logits = model(batch["image"], reconstruct=False).logits
        counts.append(metrics.count(predicted(logits), batch["mask"], len(run.data.classes)).cpu())
        cases += batch["case"]
        run.interruption.check()
    table = torch.cat(counts).numpy()
    if run.world > 1:
        parts = [None] * run.world
        dist.all_gather_object(parts, (cases, table))
        cases = [case for part, _ in parts for case in part]
        table = np.concatenate([part for _, part in parts])
    return metrics.summary(cases, table, run.data.classes, run.data.patients)


def train_one_epoch(objective, batches, optimizer, schedule, run: Run, config) -> dict[str, float]:
    """One pass; returns the mean of each loss over the slices seen.

    UserError if a loss or a gradient was not finite: the caller has saved nothing of this epoch
    then.
    """
    objective.train()
    trained = [p for p in objective.parameters() if p.requires_grad]
    values, sizes, names, quiet = [], [], [], True if run.rank else None
    shares = shares_of_steps(len(batches.sampler), config.batch_size, config.accumulate)
    seen = tqdm(unbroken(batches), total=len(batches), leave=False, disable=quiet)
    for batch, (share, ends) in zip(seen, shares, strict=True):
        batch = to_device(batch, run.device, config.channels_last)
        deferred = run.world > 1 and not ends  # processes exchange gradients once a step
        with objective.no_sync() if deferred else nullcontext():
            with autocast(run.device, config.amp):
                losses = objective(batch)
            run.scaler.scale(share * sum(losses.values())).backward()
        norm = torch.zeros((), device=run.device)
        if ends:
            run.scaler.unscale_(optimizer)
            norm = nn.utils.clip_grad_norm_(trained, config.clip or math.inf)
            run.scaler.step(optimizer)
            run.scaler.update()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
        values.append(torch.stack([*(loss.detach() for loss in losses.values()), norm]))
        sizes.append(len(batch["name"]))
        names.append([*batch["name"], *batch.get("unlabelled_name", ())])
        run.interruption.check()
    table = torch.stack(values).double().cpu()  # the one wait for the device
    if run.scaler.is_enabled() and run.scaler.get_scale() >= 1:
        table[:, -1] = 0  # steps whose float16 gradients overflowed were skipped, as intended
    check_finite(table, list(losses), names, [ends for _, ends in shares], run)
    weights = torch.tensor(sizes, dtype=torch.float64)
    means = (table[:, :-1] * weights[:, None]).sum(0) / weights.sum()
    return dict(zip(losses, means.tolist(), strict=True))


def check_finite(table, losses: list[str], names: list[list[str]], ends: list[bool], run: Run):
    """UserError, naming the slices, for the first non-finite loss or gradient.

    `table` `(batches, losses + 1)` holds each batch's losses and, where a step ends, the norm of
    its gradient: for a gradient only the step is known, for a loss the batch.
    """
    wrong = ~table.isfinite()
    if not wrong.any():
        return
    first = last = int(wrong.any(1).nonzero()[0])
    bad = [f"the loss {n}" for n, w in zip(losses, wrong[last, :-1], strict=True) if w]
    while not bad and first and not ends[first - 1]:
        first -= 1
    step = f"the step of batches {first + 1} to {last + 1}"
    where = f"batch {last + 1}" if first == last else step
    whose = f" of process {run.rank}, of {run.world}" if run.world > 1 else ""
    way_out = ", train with --no-amp" if run.scaler.is_enabled() else ""
    slices = ", ".join(name for batch in names[first : last + 1] for name in batch)
    raise UserError(
        f"{where}: {', '.join(bad or ['the gradient'])} is not finite. Slices{whose}: {slices}. "
        f"Lower --lr{way_out}, or look at these files; last.pt holds the last good epoch."
    )


def shares_of_steps(total: int, batch_size: int, accumulate: int) -> list[tuple[float, bool]]:
    """Of each batch of `total` slices: its share of its step's slices; whether the step ends there.

    A step takes `accumulate` batches. The means over its batches, added with these shares, are the
    mean over its slices, short as the last batch may be.
    """
    sizes = [min(batch_size, total - start) for start in range(0, total, batch_size)]
    shares = []
    for first in range(0, len(sizes), accumulate):
        step = sizes[first : first + accumulate]
        shares += [(size / sum(step), place + 1 == len(step)) for place, size in enumerate(step)]
    return shares


def fit(objective: nn.Module, run: Run, config: TrainConfig) -> None:
    """Train `objective.model` on `run.train`; keep the epoch with the best validation Dice.

    AdamW, linear warm-up, cosine to zero, gradient clipping. Writes config.json, log.csv,
    curves.png, last.pt and best.pt into the run folder. The score that chooses `best.pt` is the
    mean Dice over the validation patients. UserError if a loss becomes non-finite, if `--resume`
    finds another configuration, or if another process of the run is gone.
    """
    objective.to(run.device, memory_format=layout(config.channels_last))
    sampler = TrainSampler(
        run.train.slices,
        config.foreground_fraction,
        config.augment,
        config.seed,
        run.rank,
        run.world,
    )
    workers = loader_workers(config.workers, run.device)
    pin = run.device.type == "cuda"
    batches = loader(run.train, config.batch_size, sampler, workers, pin)
    optimizer = adamw(objective, config)
    log = take_up(objective, optimizer, run, config) if config.resume else []
    if len(log) == config.epochs:
        leave_as_it_is(run, log)
        return
    steps = -(-len(batches) // config.accumulate)
    schedule = warm_up_and_cosine(optimizer, config, steps, done=len(log))
    prepare(objective, run, config)
    extra = parameters(objective) - parameters(objective.model)
    more = f", {extra:,} more in the objective's projections" if extra else ""
    run.say(f"{parameters(objective.model):,} parameters{more}")
    with interruptible(run):
        train_epochs(objective, batches, optimizer, schedule, run, config, log)
    end_processes(run)
    say_the_best(run)


@contextmanager
def interruptible(run: Run):
    """Epochs that Ctrl-C, SIGTERM or the end of another process leave in a state to resume."""
    try:
        with run.interruption:
            try:
                yield
            except Exception:
                run.interruption.check()  # the other processes of the run may have met it first
                raise
            finally:
                save_the_rest(run)
    except (KeyboardInterrupt, SystemExit):
        run.say(f"\nstopped; --resume continues after epoch {run.saved}")
        raise
    except RuntimeError as error:
        if run.world == 1 or "gloo" not in str(error):
            raise
        raise UserError("another process of this run has ended; --resume continues.") from None


def leave_as_it_is(run: Run, log: list[dict]) -> None:
    """A finished run that is resumed: only log.csv and curves.png are rewritten, in case a kill
    lost them; config.json stays that of the training."""
    if run.rank == 0:
        write_log(run, log)
    run.say(f"all {len(log)} epochs are done already; more --epochs continue")
    end_processes(run)
    if run.best[0]:
        say_the_best(run)


def end_processes(run: Run) -> None:
    """Under torchrun: wait for all processes, and leave their group."""
    if run.world > 1:
        dist.barrier()
        dist.destroy_process_group()


def train_epochs(objective, batches, optimizer, schedule, run: Run, config, log: list[dict]):
    """Train, validate and save until `log` has a row for each of `config.epochs`."""
    parallel = over_processes(objective, run)
    run.saved = len(log)
    for epoch in range(len(log) + 1, config.epochs + 1):
        began = time.perf_counter()
        batches.sampler.epoch = epoch
        seed_epoch(config.seed, epoch, run.rank)
        rate = optimizer.param_groups[0]["lr"]
        try:
            losses = train_one_epoch(parallel, batches, optimizer, schedule, run, config)
        except UserError as error:
            raise UserError(f"epoch {epoch}, {error}") from None
        seconds = time.perf_counter() - began
        same_statistics(objective.model, run)
        val = evaluate(objective.model, run.val, run, config)
        dice, pooled = val["per_patient"]["dice"]["mean"] or 0.0, val["pooled"]["dice"] or 0.0
        log.append({"epoch": epoch, "lr": rate, **losses, "val_dice": dice, "val_pooled": pooled})
        is_best = dice > run.best[1]
        run.best = (epoch, dice) if is_best else run.best
        if run.rank == 0:
            save_epoch(objective, optimizer, run, config, log, is_best)
        run.say(
            f"epoch {epoch:>3}/{config.epochs}  "
            + "  ".join(f"{name} {value:.4f}" for name, value in losses.items())
            + f"  val Dice {dice:.4f}{' *' if is_best else ''}  {seconds:.1f} s, "
            f"{len(run.train) / seconds:.0f} slices/s"
        )


def adamw(objective: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """The optimizer of all that an objective learns, its projections among it."""
    learned = [p for p in objective.parameters() if p.requires_grad]
    return torch.optim.AdamW(learned, config.lr, weight_decay=config.weight_decay, fused=True)


def say_the_best(run: Run) -> None:
    """The epoch that best.pt holds."""
    epoch, dice = run.best
    where = shown(run.folder / "best.pt")
    run.say(f"best epoch {epoch}: validation Dice {dice:.4f} per patient -> {where}")
    if not any(s.foreground for s in run.val.slices):
        run.say(
            "no validation slice shows a class, so this score means nothing; choose other patients"
        )
    elif not dice:
        run.say("no class was found in any validation slice: train for more --epochs")


def seed_epoch(seed: int, epoch: int, rank: int) -> None:
    """Seed each epoch by its number, so resuming reproduces it."""
    torch.manual_seed(int(np.random.SeedSequence([seed, epoch, rank]).generate_state(1)[0]))


def warm_up_and_cosine(optimizer, config: TrainConfig, steps: int, done: int):
    """Linear warm-up, then half a cosine to 0 at the last step; a function of the step alone.

    `steps` is the number of steps of an epoch, `done` the number of epochs already trained.
    """
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


def over_processes(objective: nn.Module, run: Run) -> nn.Module:
    """The objective, under torchrun with its gradients averaged over the processes."""
    if run.world == 1:
        return objective
    if run.device.type == "cuda":
        objective.model = nn.SyncBatchNorm.convert_sync_batchnorm(objective.model)
    return DistributedDataParallel(objective)


def same_statistics(model: nn.Module, run: Run) -> None:
    """BatchNorm's running statistics of the first process, the one that saves, in all of them."""
    if run.world > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)
