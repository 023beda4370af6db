"""Resuming a training: with its own settings, on the same patients, bit for bit."""

from common.config import plain, to_json
from common.errors import UserError
from common.files import read_csv, shown
from common.settings import NOT_LEARNED, TrainConfig
from common.training import checkpoint
from common.training.runs import Run, of_data

# What may differ between a run and its continuation. More `epochs` stretch the cosine, which then
# continues from where the longer one would be. `teacher` is a path, and may have moved: the
# distiller itself remembers which weights it was. `weights_folder` is read for the first weights
# alone.
FREE_ON_RESUME = NOT_LEARNED | {"epochs", "teacher", "weights_folder"}


def changed_settings(config: TrainConfig, before: dict, free: set[str]) -> list[str]:
    """Which settings of `before`, a run's config as plain values, have changed: `lr: 0.1 -> 0.2`.

    Those in `free` may differ. A flag added since has its default.
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
                f"{shown(path)} is gone and the run cannot continue without it; best.pt would be "
                "replaced. Train under another --name, or start over with --overwrite."
            )
        run.say(f"nothing to resume in {shown(run.folder)}: starting at epoch 1")
        return []
    state = checkpoint.load(path, run.stage)
    changed = changed_settings(config, state["config"], FREE_ON_RESUME)
    if any(names != run.cases.get(part) for part, names in state["patients"].items()):
        changed.append("the split: other patients")
    if state.get("slices", before := run.data.digest(run.cases["train"])) != before:
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
        run.say(f"{before} epochs were planned, now {config.epochs}: the cosine schedule differs")
    if run.world != (before := state.get("processes", run.world)):
        run.say(f"note: {before} processes before, {run.world} now, each with --batch-size slices")
    checkpoint.load_weights(objective, state["objective"], path)
    optimizer.load_state_dict(state["optimizer"])
    if state.get("scaler"):  # none of a run in another format than float16
        run.scaler.load_state_dict(state["scaler"])
    try:  # it may be of an epoch that a kill has lost
        chosen = checkpoint.load(run.folder / "best.pt", run.stage)
        run.best = chosen["epoch"], chosen["val_dice"]
    except UserError as error:
        run.best = (0, -1.0)
        left = len(state["log"]) < config.epochs
        later = "The best of the coming epochs will be kept."
        run.say(
            f"note: {error} {later if left else 'inference.py --weights last does not need it.'}"
        )
    run.say(f"resuming {shown(run.folder)} after epoch {len(state['log'])}")
    return state["log"]
