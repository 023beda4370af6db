"""Which CT volumes are to be segmented, where their files go, and what must not be replaced."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from common.dataset.formats import foreign_files, is_nifti_name, plain, stem, without_channel
from common.dataset.picture_folders import ENDINGS
from common.errors import UserError, bullets
from common.files import read_csv, shown, write_json
from common.inference.measures import COLUMNS
from common.inference.trained_run import Trained
from common.settings import InferenceConfig


class Job(NamedTuple):
    """One volume to segment: its file, its true mask if there is one, and what will be written."""

    volume: Path
    truth: Path | None
    mask: Path

    @property
    def name(self) -> str:
        """The volume's file name, as tables and sheets have it."""
        return plain(self.volume.name)

    def beside(self, ending: str) -> Path:
        """A file next to the mask, with the same name but for the ending."""
        return self.mask.with_name(stem(self.mask) + ending)

    def written(self, maps: list[str]) -> list[Path]:
        """All files that it will leave; `maps` are the endings of its probability maps."""
        return [self.mask, *map(self.beside, (".png", *maps)), self.record]

    @property
    def record(self) -> Path:
        """The JSON next to the mask: what was found, and which files belong to it."""
        return self.beside(".json")


def list_jobs(run: Trained, config: InferenceConfig) -> list[Job]:
    """What is to be segmented, and where to. The output's folder is made.

    UserError if there is nothing to do, if a true mask is missing, or if a volume, a true mask, a
    foreign file or another output would be replaced.
    """
    volumes, single = volume_files(config.volume), not config.volume.is_dir()
    if (count := channels_in(volumes)) > 1:
        own = run.checkpoint.get("channel") or 0
        print(
            f"warning: {shown(config.volume)} seems to hold {count} channels of each volume "
            f"(nnU-Net); each file is segmented by itself, right are those of *_{own:04d} alone"
        )
    output = config.output or run.folder / "volumes"
    named = is_nifti_name(output) and not output.is_dir()
    other = output.suffix.lower() in (".gz", ".png", ".json", ".csv", ".dcm", ".nrrd", ".mha")
    if not named and (output.is_file() or other and not output.is_dir()):
        raise UserError(f"--output {shown(output)}: name a folder, a .nii or a .nii.gz.")
    if named and not single:
        raise UserError(f"--output {shown(output)} is one file; --volume is a folder.")
    masks = [output] if named else [output / f"{stem(v)}.nii.gz" for v in volumes]
    truths = [None] * len(volumes)
    if config.ground_truth:
        if not single and not config.ground_truth.is_dir():
            raise UserError("--ground-truth must be a folder where --volume is one.")
        truths = [truth_of(v, config.ground_truth) for v in volumes]
    if missing := [shown(path) for path in truths if path and not path.is_file()]:
        raise UserError(f"{len(missing)} true masks are missing:{bullets(missing)}")
    jobs = [Job(*files) for files in zip(volumes, truths, masks, strict=True)]
    check_outputs(jobs, map_endings(run, config))
    try:
        jobs[0].mask.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {shown(output)}: {error.strerror}.") from None
    return jobs


def channels_in(volumes: list[Path]) -> int:
    """How many of nnU-Net's channels, NAME_0000, NAME_0001, there are of each of several volumes;
    0 if the files' names do not look so."""
    groups: dict[str, set[str]] = {}
    for name in map(stem, volumes):
        groups.setdefault(without_channel(name), set()).add(name)
    count = len(next(iter(groups.values())))
    alike = all({f"{n}_{k:04d}" for k in range(count)} == g for n, g in groups.items())
    return count if len(groups) > 1 and alike else 0


def truth_of(volume: Path, truth: Path) -> Path:
    """A volume's true mask: `truth` itself or, if it is a folder, the file there of the same name,
    packed or not, with or without nnU-Net's _0000."""
    if not truth.is_dir():
        return truth
    own = truth / volume.name
    if own.is_file():
        return own
    truths = {path.name: path for path in truth.iterdir() if is_nifti_name(path)}
    for name in (stem(volume), without_channel(stem(volume))):
        if fitting := [path for path in truths.values() if stem(path) == name]:
            return min(fitting)
    return own


def earlier_rows(table: Path) -> dict[str, list[dict]]:
    """The rows of an earlier volumes.csv by volume, of those whose masks are still there.
    UserError as in `own_rows`."""
    rows: dict[str, list[dict]] = {}
    for row in own_rows(table, COLUMNS):
        if table.with_name(f"{stem(Path(row['volume']))}.nii.gz").exists():
            rows.setdefault(row["volume"], []).append(row)
    return rows


def own_rows(table: Path, columns: Sequence[str]) -> list[dict]:
    """The rows of an earlier table, none if there is none. UserError if it has other columns than
    ours: somebody's own."""
    if not table.exists():
        return []
    if not is_own(table, columns):
        raise UserError(f"{shown(table)} would be replaced; choose another --output.")
    return read_csv(table)


def is_own(table: Path, columns: Sequence[str]) -> bool:
    """Whether a file starts like one of our tables with these columns."""
    with table.open(encoding="utf-8", errors="replace") as file:
        return file.readline().rstrip("\n") == ",".join(columns)


def untouched(job: Job) -> bool:
    """Whether an earlier inference's files are still what its JSON says, none of them half made."""
    try:
        listed = json.loads(job.record.read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return None not in listed.values() and len(earlier_files(job)) == len(listed) + 1


def map_endings(run: Trained, config: InferenceConfig) -> list[str]:
    """How the files of the classes' probability maps end; none if they are not wanted."""
    return [f"_probability{s}.nii.gz" for s in run.suffixes if config.probabilities]


def check_outputs(jobs: list[Job], maps: list[str]) -> None:
    """UserError if a file that is not ours to write would be replaced."""
    given = {path.resolve() for job in jobs for path in job[:2] if path}
    taken = set()
    for job in jobs:
        files, earlier = job.written(maps), earlier_files(job)
        foreign = [p for p in files if p.exists() and p not in earlier]
        at_risk = [p for p in [*files, *sorted(earlier)] if p.resolve() in given | taken] + foreign
        if at_risk:
            raise UserError(f"{shown(at_risk[0])} would be replaced; choose another --output.")
        taken |= {path.resolve() for path in files}


def begin(job: Job, maps: list[str]) -> None:
    """Before the first file of a mask is written: put down which there will be, so that they are
    known as ours if it ends there, and remove an earlier mask's maps that this one will not have.
    """
    files = job.written(maps)
    for old in earlier_files(job) - {*files}:
        old.unlink()
    coming = {_below(path, job): None for path in files if path != job.record}
    write_json(job.record, {job._fields[0]: job.name, "files": coming})


def checksums(job: Job, maps: list[str]) -> dict[str, str]:
    """SHA-256 of every file that was written, by its name, but for the JSON that keeps them."""
    return {_below(p, job): _checksum(p) for p in job.written(maps) if p != job.record}


def _below(path: Path, job: Job) -> str:
    """A file's path below its mask's folder."""
    return path.relative_to(job.mask.parent).as_posix()


def earlier_files(job: Job) -> set[Path]:
    """What an inference has left here, and nobody has touched since: what its JSON lists.

    A file without a checksum there was being written when that inference was stopped.
    """
    try:
        listed = json.loads(job.record.read_text(encoding="utf-8"))["files"]
        recorded = {job.mask.parent / name: of for name, of in listed.items()}
        if any(".." in p.parts or not p.is_relative_to(job.mask.parent) for p in recorded):
            return set()
        unchanged = {p for p, of in recorded.items() if p.is_file() and of in (None, _checksum(p))}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # none, or somebody's own
        return set()
    return unchanged | {job.record}


def _checksum(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def volume_files(path: Path) -> list[Path]:
    """The NIfTI file, or those in the folder, sorted. UserError if there is none."""
    if not path.exists():
        raise UserError(f"--volume {shown(path)} does not exist.")
    inside = sorted(path.iterdir()) if path.is_dir() else [path]
    files = [f for f in inside if is_nifti_name(f) and not f.name.startswith(".")]
    files = [f for f in files if f.is_file()]  # no folder, no pipe, no link to nowhere
    if not files and any(f.suffix.lower() in ENDINGS for f in inside):
        volumes = (
            "holds no .nii or .nii.gz but pictures" if path.is_dir() else "is no .nii or .nii.gz"
        )
        raise UserError(f"--volume {shown(path)} {volumes}: pictures are predicted with --images.")
    if not files:
        hint = foreign_files(sorted(path.rglob("*")) if path.is_dir() else inside)
        raise UserError(f"{shown(path)} is, or holds, no .nii or .nii.gz. {hint}".strip())
    names = [stem(f) for f in files]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{shown(path)} holds {twice[0]} twice, as .nii and as .nii.gz.")
    return files
