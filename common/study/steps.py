"""Run scripts in order: skip what is done, resume what was interrupted, keep one log.

What is done is recorded next to what was made, so that it survives the loss of a results
folder and travels with the runs from one machine to another.
"""

import contextlib
import hashlib
import io
import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from common.config import current_name, parse
from common.dataset.preprocessing import VERSION
from common.errors import UserError, bullets
from common.files import ROOT, read_json, shown, write_json
from common.settings import TrainConfig
from common.training.resume import FREE_ON_RESUME, changed_settings


@dataclass(frozen=True)
class Step:
    """A script with its flags, the file that it leaves when done, and the steps it depends on.

    `record` is the JSON file that says whether it is done; `inputs` are files whose content its
    result depends on, `needs` the steps whose results it reads, `aside` flags that change nothing
    in the result (the device).
    """

    command: tuple[str, ...]
    leaves: Path
    record: Path
    inputs: tuple[Path, ...] = ()
    needs: tuple["Step", ...] = ()
    aside: tuple[str, ...] = ()

    @property
    def script(self) -> str:
        """Its name in the record."""
        return self.command[0]

    @property
    def trains(self) -> bool:
        """Whether it is a training: hours that must not be lost, and can be resumed."""
        return self.script.endswith("/train.py")

    @property
    def makes_data(self) -> bool:
        """Whether it writes a data set, which it replaces only with --overwrite."""
        return self.script in ("data_prep/make_phantom.py", "data_prep/slice_nifti.py")

    def known(self) -> dict:
        """What the record says of it: `key` and `done`, or nothing."""
        return read_json(self.record).get(self.script, {}) if self.record.exists() else {}


@cache
def _content(path: Path, changed: int) -> str:
    """Hash of a file; `changed` (its time stamp) keeps the cache valid.

    The colours that a dataset.json may give the classes change no result.
    """
    content = path.read_bytes()
    if path.name == "dataset.json":
        info = read_json(path)
        if isinstance(info, dict):
            info.pop("colours", None)
        content = json.dumps(info, indent=1).encode() + b"\n"
    return hashlib.sha256(content).hexdigest()


def key(step: Step) -> str:
    """A hash of the commands and input files that a step's result depends on, all the way down.

    Two steps of one key have the same result, so a change invalidates its dependents and no more.
    Paths inside the repository count from its root. Neither the code nor the pixels of a data set
    are in it: of a data set it sees the index files, and the version of how slices are made.
    """
    files = [_content(p, p.stat().st_mtime_ns) if p.exists() else "" for p in step.inputs]
    words = (word.removeprefix(f"{ROOT}/") for word in step.command)
    made = [str(VERSION)] if step.makes_data else []
    parts = [*words, *files, *made, *(key(other) for other in step.needs)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def check_outdated(steps: list[Step], overwrite: bool, above: Iterable[Step] = ()) -> None:
    """UserError naming the trainings and data sets that exist but were made with other flags than
    `steps` would make them, unless `overwrite` allows to replace them.

    The trainings `above`, which depend on their data, go with them.
    """
    outdated = []
    for step in steps:
        record, folder = step.known(), step.leaves.parent
        exists = (folder / "config.json").exists() if step.trains else step.leaves.exists()
        made_here = step.trains or (step.makes_data and record)
        if made_here and exists and record.get("key") != key(step):
            outdated.append(shown(folder))
    dependent = [s.leaves.parent for s in above if s.trains]
    if outdated:
        outdated += [shown(folder) for folder in dependent if (folder / "config.json").exists()]
    if outdated and not overwrite:
        raise UserError(
            f"{len(outdated)} runs or data sets of this name were made with other flags or "
            "data, or by hand. Choose another --name, or replace them with --overwrite."
            + bullets(list(dict.fromkeys(outdated)))
        )


def run_steps(steps: list[Step], log: Path, overwrite: bool = False) -> None:
    """Run each step that is not done, with all its output appended to `log` too.

    A training that was interrupted is resumed; what is outdated is rebuilt if `overwrite` allows
    it. UserError before the first step (and before a training whose folder was filled meanwhile) if
    something would be replaced unasked, or at the first step that fails: the step has said why.
    """
    check_outdated(steps, overwrite)
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(143)
    )  # unwinds, which also ends the running script
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as out:
        for place, step in enumerate(steps, start=1):
            command = [*step.command, *step.aside]
            parts = (shown(Path(part)) if part.startswith("/") else part for part in command)
            _say(f"\n[{place}/{len(steps)}] python {' '.join(parts)}", out)
            before, now = step.known(), key(step)
            same = before.get("key") == now
            if same and before["done"] and step.leaves.exists():
                _say("done before", out)
                continue
            if step.trains:
                check_outdated([step], overwrite)
                if not same:  # gone before the record says otherwise: never resumed by mistake
                    shutil.rmtree(step.leaves.parent, ignore_errors=True)
                    step.record.unlink(missing_ok=True)
                if (step.leaves.parent / "config.json").exists():
                    command.append("--resume")
            elif before and step.makes_data and step.leaves.exists():
                command.append("--overwrite")
            began = time.perf_counter()
            _note(step, {"key": now, "done": False})
            code = _run(command, out)
            if code or not step.leaves.exists():
                why = f"exit code {code}" if code else f"it left no {shown(step.leaves)}"
                raise UserError(
                    f"{step.script} failed ({why}); fix it and run this again. All output is in "
                    f"{shown(log)}."
                )
            seconds = time.perf_counter() - began
            _say(f"{seconds:.0f} s", out)
            _note(step, {"key": now, "done": True, "seconds": round(seconds, 1)})


def _note(step: Step, state: dict) -> None:
    """Write a step's state into its record."""
    record = read_json(step.record) if step.record.exists() else {}
    write_json(step.record, {**record, step.script: state})


def _say(text: str, out) -> None:
    """Print, and write to the log."""
    print(text, flush=True)
    out.write(f"{text}\n")
    out.flush()


def _run(command: list[str], out) -> int:
    """Run a script in the repository's root, with its output to screen and log; returns its exit
    code."""
    with subprocess.Popen(
        [sys.executable, "-u", *command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        try:
            for line in process.stdout:
                _say(line.rstrip("\n"), out)
        except BaseException:  # interrupted or terminated: the script must not continue alone
            process.terminate()
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
            raise
    return process.returncode


def flags(**values) -> tuple[str, ...]:
    """`width=32` -> `--width 32`; None is left out."""
    pairs = ((f"--{k.replace('_', '-')}", str(v)) for k, v in values.items() if v is not None)
    return tuple(part for pair in pairs for part in pair)


def check_words(flag: str, text: str, reserved: set[str], why="is set by the study itself") -> None:
    """UserError if `text`, given with `flag` to be passed on, has an unclosed quote or sets one of
    the flags that are `reserved`."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UserError(f"{flag} {text!r}: {error}.") from None
    given = [word for word in words if word.startswith("--")]
    if clash := [word for word in given if current_name(word).split("=")[0] in reserved]:
        raise UserError(f"{flag}: {clash[0]} {why}.")


def check_flags(steps: list[Step]) -> dict[Step, TrainConfig]:
    """Parse every training's flags now, so that a mistake shows before the first hour of work.

    Returns each training's settings.
    """
    settings = {}
    for step in (s for s in steps if s.trains):
        complaint = io.StringIO()
        try:
            with contextlib.redirect_stderr(complaint), contextlib.redirect_stdout(io.StringIO()):
                settings[step] = parse(_config_of(step.script), [*step.command[1:], *step.aside])
        except SystemExit:  # argparse has printed its usage, then what is wrong; or its help
            lines = complaint.getvalue().strip().splitlines() or ["--help asks, and trains nothing"]
            reason = lines[-1].split("error: ")[-1]
            raise UserError(
                f"{step.script}: {reason}; python {step.script} --help lists its flags."
            ) from None
        except UserError as error:
            raise UserError(f"{step.script}: {error}") from None
    return settings


@cache
def _config_of(script: str) -> type[TrainConfig]:
    """The Config class of a stage's train.py."""
    spec = spec_from_file_location(script.replace("/", "_"), ROOT / script)
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up by name
    spec.loader.exec_module(module)
    return module.Config


def check_settings(steps: list[Step], overwrite: bool) -> None:
    """Check what a key does not cover: defaults that have changed since a run was trained.

    UserError naming these trainings with their old and new values, unless `overwrite` allows to
    replace them: then they and their dependents no longer count as done. Runs with another key are
    left to `check_outdated`.
    """
    changes = {}
    for step, config in check_flags(steps).items():
        about = step.leaves.parent / "config.json"
        if step.known().get("key") == key(step) and about.exists():
            before = read_json(about)["config"]
            if changed := changed_settings(config, before, FREE_ON_RESUME - {"epochs"}):
                changes[step] = f"{shown(about.parent)}: {', '.join(changed)}"
    if changes and not overwrite:
        raise UserError(
            f"{len(changes)} runs of this name were trained when other values were the default. "
            "Give the old ones as flags, choose another --name, or replace these runs with "
            f"--overwrite.{bullets(list(changes.values()))}"
        )

    def touched(step: Step) -> bool:
        return step in changes or any(map(touched, step.needs))

    for step in filter(touched, steps):
        _note(step, {})
