"""A dataclass is a script's configuration: its command line, its printed start, its config.json.

    @dataclass
    class Config(TrainConfig):
        width: int = option(64, "channels of the first level")

    if __name__ == "__main__":
        launch(main, Config)

gives `--width 64`, a `--help` with every default, and one clear line for a user's mistake.
"""

import argparse
import errno
import inspect
import os
import signal
import sys
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import ClassVar, Union, get_args, get_origin, get_type_hints

from common.files import UserError, read_json, shown

# What an OSError says of the user's disk and paths; any other is a fault of ours.
OF_THE_MACHINE = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENAMETOOLONG),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP),
}


def option(default, help: str, choices: tuple | None = None, low=None, high=None):
    """A dataclass field with its help text; `choices`, or `low` to `high`, limit the values.

    Of a tuple `low=1` says that it must not be empty.
    """
    limits = {"choices": choices, "low": low, "high": high}
    return field(default=default, metadata={"help": help, **limits})


@dataclass
class Config:
    """The base of every configuration: checks the values against their fields' limits."""

    recipes: ClassVar[dict[str, dict]] = {}  # what `--recipe NAME` sets

    def __post_init__(self):
        """UserError naming every flag whose value is outside its limits.

        Paths become absolute: what is kept of them is read from other folders, too.
        """
        for f in fields(self):
            if isinstance(path := getattr(self, f.name), Path):
                # Not resolved: a link's own name is a volume's or a data set's name.
                setattr(self, f.name, Path(os.path.abspath(path)))  # noqa: PTH100
        problems = []
        for f in fields(self):
            value, low, high = getattr(self, f.name), f.metadata["low"], f.metadata["high"]
            if isinstance(value, tuple):
                if len(value) < (low or 0):
                    problems.append(f"--{f.name.replace('_', '-')} needs at least one value")
                continue
            above = low is None or value is None or value >= low
            below = high is None or value is None or value <= high
            if not (above and below):
                flag = "--" + f.name.replace("_", "-")
                limit = f"at least {low}" if high is None else f"from {low} to {high}"
                problems.append(f"{flag} is {value}; it must be {limit}")
        if problems:
            raise UserError("; ".join(problems))
        name = getattr(self, "name", None)
        if name is not None and (name in ("", ".", "..") or Path(name).name != name):
            raise UserError(f"--name {name!r} is not a plain folder name.")


def to_json(config) -> dict:
    """A config as plain JSON types: what config.json and checkpoints hold."""
    return {name: plain(value) for name, value in asdict(config).items()}


def plain(value):
    """A setting as JSON gives it back: a path as its text, a tuple as a list."""
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def parse(
    cls,
    argv: list[str] | None = None,
    description: str | None = None,
    stage: Path | None = None,
):
    """Build a config of dataclass `cls` from the command line. Unknown flags exit with 2.

    A `--recipe` sets its values first, then `--resume` those that the run in `stage` was begun
    with; other flags, wherever they stand, come after both.
    """
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    hints = get_type_hints(cls)
    for f in fields(cls):
        _add_flag(parser, f, hints[f.name])
    first = parser.parse_args(argv)
    parser.set_defaults(**cls.recipes.get(getattr(first, "recipe", None), {}))
    if stage and getattr(first, "resume", False):
        parser.set_defaults(**begun_with(cls, stage / "runs" / first.name / "config.json"))
    values = vars(parser.parse_args(argv))
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def begun_with(cls, path: Path) -> dict:
    """The settings in a run's config.json, but for those that say how to begin; none without it."""
    known = {f.name for f in fields(cls)} - {"resume", "overwrite", "name"}
    about = read_json(path) if path.is_file() else {}
    before = about.get("config", {}) if isinstance(about, dict) else {}
    return {name: value for name, value in before.items() if name in known}


def _add_flag(parser: argparse.ArgumentParser, f, kind) -> None:
    flag = "--" + f.name.replace("_", "-")
    default = shown(f.default) if isinstance(f.default, Path) else f.default
    if isinstance(default, tuple):
        default = " ".join(map(str, default))
    help = f.metadata["help"] + ("" if default is None else f" (default: {default})")
    keywords = {"dest": f.name, "default": f.default, "help": help.replace("%", "%%")}
    if get_origin(kind) in (Union, UnionType):  # X | None
        kind = next(a for a in get_args(kind) if a is not type(None))
    if kind is bool:
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, **keywords)
        return
    if get_origin(kind) is tuple:
        keywords["nargs"], kind = "*", get_args(kind)[0]
    if f.metadata["choices"]:
        keywords["choices"] = f.metadata["choices"]
    else:
        keywords["metavar"] = kind.__name__.upper()
    parser.add_argument(flag, type=kind, **keywords)


def describe(config, title: str) -> str:
    """The configuration as one aligned block of text, printed at the start of a script."""
    values = {f.name: getattr(config, f.name) for f in fields(config)}
    width = max(map(len, values))
    lines = (
        f"  {name:<{width}}  {shown(value) if isinstance(value, Path) else value}"
        for name, value in values.items()
    )
    return "\n".join([title, *lines])


def launch(main, cls) -> None:
    """Run `main(config)` as a script: exit code 1 and one line, no traceback, for a UserError, for
    a full or read-only disk and for a GPU whose memory is too small. Ctrl-C exits with 130 and
    SIGTERM with 143, both by the way of every `finally`."""
    # The manual is the script's docstring; under torchrun only rank 0 speaks.
    script = Path(inspect.getfile(main)).resolve()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        config = parse(cls, None, inspect.getmodule(main).__doc__, script.parent)
        if os.environ.get("RANK", "0") == "0":
            print(describe(config, f"{script.parent.name}/{script.name}"), flush=True)
        main(config)
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        if error.errno not in OF_THE_MACHINE:
            raise
        where = f"{shown(Path(error.filename))}: " if error.filename else ""
        sys.exit(f"error: {where}{error.strerror}.")
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's; this module does without torch
            raise
        sys.exit(
            "error: the GPU's memory is too small for this: lower --batch-size (--accumulate keeps "
            "the step) or --width."
        )
