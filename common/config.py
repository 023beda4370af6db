"""A dataclass is a script's configuration: its command line, its printed start, its config.json.

    @dataclass
    class Config(TrainConfig):
        width: int = option(64, "channels of the first level")

    if __name__ == "__main__":
        launch(main, Config)

gives `--width 64`, a `--help` with every default, and one clear line for a user's mistake.
"""

import argparse
import contextlib
import errno
import inspect
import io
import os
import select
import signal
import sys
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import ClassVar, Union, get_args, get_origin, get_type_hints

from common.errors import UserError
from common.files import read_json, shown

# OSErrors about the user's disk and paths; any other is a bug.
OF_THE_MACHINE = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENAMETOOLONG),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP),
}

# Flags of version 1.0 that have another name now: commands in notebooks and papers still work.
RENAMED = {
    **{"--organs": "--classes", "--share": "--train-on", "--of": "--num-folds"},
    **{"--hidden": "--mask-ratio", "--foreground": "--foreground-fraction"},
    **{"--relation": "--affinity", "--truth": "--ground-truth"},
}


def option(default, help: str, choices: tuple | None = None, low=None, high=None, least=0):
    """A dataclass field with its help text; `choices`, or `low` to `high`, limit the values.

    For tuples, limits apply to each value, and `least` to their number.
    """
    limits = {"choices": choices, "low": low, "high": high, "least": least}
    return field(default=default, metadata={"help": help, **limits})


@dataclass
class Config:
    """The base of every configuration: checks the values against their fields' limits."""

    recipes: ClassVar[dict[str, dict]] = {}  # what `--recipe NAME` sets
    # How --help is grouped: the flags under each title; the others come first, under `own`.
    groups: ClassVar[dict[str, tuple[str, ...]]] = {}
    own: ClassVar[str] = ""  # its title; without one they are among the options

    def __post_init__(self):
        """UserError naming every flag whose value is outside its limits.

        Paths become absolute: what is stored of them is read from other folders, too.
        """
        for f in fields(self):
            if isinstance(path := getattr(self, f.name), Path):
                setattr(self, f.name, absolute(path))
        problems = []
        for f in fields(self):
            value, low, high = getattr(self, f.name), f.metadata["low"], f.metadata["high"]
            if isinstance(value, tuple) and len(value) < f.metadata["least"]:
                problems.append(f"--{f.name.replace('_', '-')} needs at least one value")
            values = value if isinstance(value, tuple) else () if value is None else (value,)
            above = low is None or all(v >= low for v in values)
            below = high is None or all(v <= high for v in values)
            if not (above and below):
                flag = "--" + f.name.replace("_", "-")
                limit = f"at least {low}" if high is None else f"from {low} to {high}"
                given = " ".join(map(str, values))
                problems.append(f"{flag} is {given}; it must be {limit}")
        if problems:
            raise UserError("; ".join(problems))
        name = getattr(self, "name", None)
        if name is not None and (name in ("", ".", "..") or Path(name).name != name):
            raise UserError(f"--name {name!r} is not a plain folder name.")


def absolute(path: Path) -> Path:
    """An absolute path, since what is stored of it is read from other folders, too. If it is a
    link, its own name stays: that is a volume's or a data set's."""
    named = path.name not in ("", "..")
    return path.parent.resolve() / path.name if named else path.resolve()


def to_json(config) -> dict:
    """A config as plain JSON types: what config.json and checkpoints hold."""
    return {name: plain(value) for name, value in asdict(config).items()}


def plain(value):
    """A setting as it comes back from JSON: a path as text, a tuple as a list."""
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
    titles = (cls.own, *cls.groups) if cls.own else cls.groups
    sections = {"": parser} | {title: parser.add_argument_group(title) for title in titles}
    section_of = {name: title for title, names in cls.groups.items() for name in names}
    for f in fields(cls):
        _add_flag(sections[section_of.get(f.name, cls.own)], f, hints[f.name])
    argv = _current_names(sys.argv[1:] if argv is None else argv)
    first = parser.parse_args(argv)
    if stage and getattr(first, "resume", False):
        before = begun_with(parser, cls, stage / "runs" / first.name / "config.json")
        recipe = getattr(parser.parse_args(before), "recipe", None)
        if before and getattr(parser.parse_args([*before, *argv]), "recipe", None) != recipe:
            raise UserError(f"--resume: the run was begun with --recipe {recipe}; leave it out.")
        argv = [*before, *argv]
    parser.set_defaults(**cls.recipes.get(getattr(first, "recipe", None), {}))
    values = vars(parser.parse_args(argv))
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def current_name(word: str) -> str:
    """A word of a command line; a flag of version 1.0, or `--flag=value`, by its present name."""
    flag, equals, value = word.partition("=")
    return RENAMED.get(flag, flag) + equals + value


def _current_names(argv: list[str]) -> list[str]:
    """The command line with the flags of version 1.0 by their present names, each said once."""
    words = [current_name(word) for word in argv]
    for before, now in dict.fromkeys(zip(argv, words, strict=True)):
        if before != now:
            flags = (word.partition("=")[0] for word in (before, now))
            print("note: {} is called {} now".format(*flags), file=sys.stderr)
    return words


def begun_with(parser: argparse.ArgumentParser, cls, path: Path) -> list[str]:
    """The settings in a run's config.json as flags, but for those that say how to begin, and for
    paths that are gone; none without it. UserError if they are none of `cls`."""
    about = read_json(path) if path.is_file() else {"config": {}}
    before = about.get("config") if isinstance(about, dict) else None
    words = []
    for f in fields(cls) if isinstance(before, dict) else ():
        value, flag = before.get(f.name), f.name.replace("_", "-")
        moved = isinstance(f.default, Path) and not Path(str(value)).exists()
        if value is None or moved or f.name in ("resume", "overwrite", "name"):
            continue
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, list):
            words += [f"--{flag}", *map(str, value)]
        else:
            words.append(f"--{flag}={value}")
    try:
        with contextlib.redirect_stderr(io.StringIO()) as complaint:
            parser.parse_args(words)
    except SystemExit:
        reason = complaint.getvalue().strip().splitlines()[-1].split("error: ")[-1]
        raise UserError(f"{shown(path)}: {reason}.") from None
    if not isinstance(before, dict):
        raise UserError(f"{shown(path)} holds no settings.")
    return words


def _add_flag(parser: argparse._ActionsContainer, f, kind) -> None:
    flag = "--" + f.name.replace("_", "-")
    default = shown(f.default) if isinstance(f.default, Path) else f.default
    if isinstance(default, tuple):
        default = " ".join(map(str, default)) or None
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


def reader_has_gone() -> bool:
    """Whether standard output is no longer read: `| head` has enough."""
    poll = select.poll()
    poll.register(sys.stdout.fileno())
    return any(event & select.POLLERR for _, event in poll.poll(0))


def launch(main, cls) -> None:
    """Run `main(config)` as a script: exit code 1 and one line, no traceback, for a UserError, for
    a full or read-only disk and for a GPU whose memory is too small. Ctrl-C exits with 130 and
    SIGTERM with 143, both after every `finally`."""
    # The manual is the script's docstring; under torchrun only rank 0 prints.
    script = Path(inspect.getfile(main)).resolve()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    for stream in (sys.stdout, sys.stderr):  # names with letters that the console lacks
        stream.reconfigure(errors="backslashreplace")
    try:
        config = parse(cls, None, inspect.getmodule(main).__doc__, script.parent)
        if os.environ.get("RANK", "0") == "0":
            print(describe(config, f"{script.parent.name}/{script.name}"), flush=True)
        main(config)
        sys.stdout.flush()
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        if not reader_has_gone():
            raise
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
        names = {f.name for f in fields(cls)}
        keeps = " (--accumulate keeps the step)" if "accumulate" in names else ""
        narrower = " or --width" if "width" in names else ""
        sys.exit(
            f"error: the GPU's memory is too small for this: lower --batch-size{keeps}{narrower}."
        )
