"""Run scripts in order: skip what is done, take up what was interrupted, keep one log."""

import hashlib
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from common.files import ROOT, UserError, read_json, shown, write_json


@dataclass(frozen=True)
class Step:
    """A script with its flags, the file that it leaves when done, and what it stands on.

    `inputs` are files whose content it depends on, `needs` the steps whose results it reads.
    """

    command: tuple[str, ...]
    leaves: Path
    inputs: tuple[Path, ...] = ()
    needs: tuple["Step", ...] = ()

    @property
    def name(self) -> str:
        """Script and run: the step's name in the record."""
        return f"{self.command[0]} {self.leaves.parent.name}"


@cache
def content(path: Path, changed: int) -> str:
    """Hash of a file; `changed` (its time stamp) keeps the cache honest."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def key(step: Step) -> str:
    """A hash of everything that a step's result depends on: commands and inputs, all the way down.

    Two steps of one key have the same result, so a change reaches what stands on it and no more.
    """
    files = [content(p, p.stat().st_mtime_ns) if p.exists() else "" for p in step.inputs]
    parts = [*step.command, *files, *(key(other) for other in step.needs)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def run_steps(steps: list[Step], folder: Path) -> None:
    """Run each step that is not done; `folder` keeps steps.json (what is done) and log.txt.

    A training that was interrupted is resumed; one whose key has changed starts anew. UserError
    at the first step that fails: the step has said why.
    """
    record, log = folder / "steps.json", folder / "log.txt"
    known = read_json(record) if record.exists() else {}
    folder.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as out:
        for place, step in enumerate(steps, start=1):
            parts = (shown(Path(part)) if part.startswith("/") else part for part in step.command)
            line = f"\n[{place}/{len(steps)}] python {' '.join(parts)}"
            before, now = known.get(step.name, {}), key(step)
            same = before.get("key") == now
            if same and before["done"] and step.leaves.exists():
                print(f"{line}\ndone before", flush=True)
                continue
            known[step.name] = {"key": now, "done": False}
            write_json(record, known)
            command = list(step.command)
            if command[0].endswith("train.py"):
                begun = same and (step.leaves.parent / "config.json").exists()
                command.append("--resume" if begun else "--overwrite")
            began = time.perf_counter()
            _say(line, out)
            if code := _run(command, out):
                raise UserError(
                    f"{command[0]} failed (exit code {code}); mend it and run this again. All "
                    f"output is in {shown(log)}."
                )
            seconds = time.perf_counter() - began
            _say(f"{seconds:.0f} s", out)
            known[step.name] = {"key": now, "done": True, "seconds": round(seconds, 1)}
            write_json(record, known)


def _say(text: str, out) -> None:
    """Onto the screen and into the log."""
    print(text, flush=True)
    out.write(f"{text}\n")
    out.flush()


def _run(command: list[str], out) -> int:
    """Run a script in the repository's root, its output to both places; its exit code."""
    with subprocess.Popen(
        [sys.executable, "-u", *command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        for line in process.stdout:
            _say(line.rstrip("\n"), out)
    return process.returncode
