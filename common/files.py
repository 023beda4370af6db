"""Files on disk: atomic writes, JSON and CSV, run folders.

Every writer here writes a temporary file in the target's own folder and renames it. A reader
sees the old file or the new one, never half of one, even if the process is killed.
"""

import csv
import errno
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path

from common.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

ROOT = Path(__file__).resolve().parents[1]


def shown(path: Path) -> str:
    """A path as printed: relative to the working directory or the repository where it can be."""
    for base in (Path.cwd(), ROOT):
        if path.is_relative_to(base):
            return printable(str(path.relative_to(base)))
    return printable(str(path))


def printable(name: str) -> str:
    """A file's name as it can be printed and written: bytes that are not UTF-8 as `\\udcff`."""
    return name.encode(errors="backslashreplace").decode()


@contextmanager
def atomic(path: Path):
    """Yield a temporary path next to `path`; on success it replaces `path`, else it is removed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last: writers such as Pillow choose the format by it.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file atomically."""
    with atomic(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write a whole UTF-8 text file atomically."""
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_json(path: Path, value) -> None:
    """Write `value` as indented JSON, one newline at the end; NaN is refused."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path, hint: str = ""):
    """Read a JSON file. UserError, with `hint` on what to do, if it is missing or broken."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"{shown(path)} does not exist. {hint}".strip()) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{shown(path)} is not a readable JSON file ({error}). {hint}") from None


def write_csv(path: Path, rows: Iterable[Mapping]) -> None:
    """Write rows (dicts with the same keys) with a header, atomically."""
    rows = list(rows)
    with atomic(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_csv(path: Path, columns: Iterable[str] = (), hint: str = "") -> list[dict[str, str]]:
    """Read a CSV with a header. UserError if it is missing, unreadable or lacks a column."""
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
            names = reader.fieldnames or []
    except FileNotFoundError:
        raise UserError(f"{shown(path)} does not exist. {hint}".strip()) from None
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{shown(path)} is not a readable CSV file ({error}). {hint}") from None
    missing = [column for column in columns if column not in names]
    if missing:
        raise UserError(f"{shown(path)} has no column {', '.join(missing)}; found: {names}. {hint}")
    # A short row gives None, a long one the key None: both are a torn or hand-broken file.
    torn = [n for n, row in enumerate(rows, start=2) if None in row or None in row.values()]
    if torn:
        raise UserError(f"{shown(path)}: line {torn[0]} does not have {len(names)} values. {hint}")
    return rows


def require_space(folder: Path, megabytes: float) -> None:
    """UserError if the disk that holds `folder` has less than `megabytes` free."""
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    free = shutil.disk_usage(existing).free / 1e6
    if free < megabytes:
        raise UserError(f"{shown(folder)}: {megabytes:.0f} MB are needed, {free:.0f} MB are free.")


def check_run(folder: Path, resume: bool, overwrite: bool) -> None:
    """UserError if `<stage>/runs/<name>` is not empty and neither flag says what to do with it,
    or if there is no run to resume.

    A finished or partial training is never lost to a second `python train.py`.
    """
    held = folder.exists() and any(path.name[0] != "." for path in folder.iterdir())
    if resume and overwrite:
        raise UserError("--resume and --overwrite exclude each other.")
    if resume and not (folder / "config.json").exists():
        runs = known_runs(folder.parent, "config.json")
        lacks = "holds no config.json and cannot be resumed" if held else "holds no run to resume"
        raise UserError(f"{shown(folder)} {lacks}; there is {', '.join(runs) or 'none yet'}.")
    if held and not (resume or overwrite):
        raise UserError(
            f"{shown(folder)} already holds a run. Continue it with --resume, keep it and train "
            "next to it with --name NEW, or replace it with --overwrite."
        )


def known_runs(runs: Path, holding: str) -> list[str]:
    """The names of the runs in a stage's `runs` folder that hold a file of that name."""
    return sorted(path.parent.name for path in runs.glob(f"*/{holding}"))


def unfinished(folder: Path) -> str:
    """`16 of 100 epochs` for a run that stopped before its end; empty for any other, or if the
    run's files do not say."""
    about, log = folder / "config.json", folder / "log.csv"
    if not (about.exists() and log.exists()):
        return ""
    config = read_json(about).get("config")
    planned = config.get("epochs") if isinstance(config, dict) else None
    done = len(read_csv(log))
    return f"{done} of {planned} epochs" if isinstance(planned, int) and done < planned else ""


def lock_folder(folder: Path):
    """Claim a folder for this process to write: `with lock_folder(...)`, or keep the result.

    The lock is a file next to the folder, `.NAME.lock`. It is released on exit, however the process
    ends. UserError if another process holds it. Where locking is not possible (Windows, some
    network disks) it does nothing.
    """
    if fcntl is None:
        return nullcontext()
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = (folder.parent / f".{folder.name}.lock").open("w")
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            return nullcontext()
        raise UserError(
            f"{shown(folder)} is being written by another process; wait for it, or choose another."
        ) from None
    return lock


def new_run(folder: Path, keep: bool) -> None:
    """Make the run folder, empty unless `keep`."""
    if not keep and folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left half-written in `folder` (see `atomic`)."""
    for leftover in folder.glob(".*.tmp*"):
        leftover.unlink(missing_ok=True)


def replace_folder(new: Path, target: Path) -> None:
    """Move the folder `new` to `target`; the old one is removed only afterwards."""
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)
