"""The slice data set that a script writes: its flags, and what of an earlier one stays."""

import shutil
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from common.config import Config, option
from common.dataset.slices import check_info
from common.files import read_json
from common.settings import DATA


@dataclass
class SliceSetConfig(Config):
    """The flags of every script that writes a slice data set."""

    output: Path = option(DATA, "data set folder to write")
    size: int = option(256, "height and width of the slices in pixels", low=16, high=4096)
    seed: int = option(0, "seed of the splits", low=0)
    num_folds: int = option(0, "how many cross-validation folds; 0: one 70/10/20 split", low=0)
    fold: int = option(0, "the fold to test on, from 0", low=0)
    overwrite: bool = option(False, "replace the data set in the output folder")

    @property
    def partial(self) -> Path:
        """Where the set is made, before it is moved to its place."""
        return self.output.with_name(self.output.name + ".partial")


def known_colours(config: SliceSetConfig, about: dict) -> dict:
    """The colours, checked, that a user gave an earlier set of the same classes."""
    index = config.output / "dataset.json"
    earlier = read_json(index) if index.exists() else None
    same = isinstance(earlier, dict) and earlier.get("classes") == about["classes"]
    if not same or "colours" not in earlier:
        return {}
    check_info(earlier, index)
    return {"colours": earlier["colours"]}


def keep_others(config: SliceSetConfig) -> None:
    """Keep what users have added to the set's own files, like splits of their own."""
    own = {*("images", "masks", ".done", "manifest.csv", "splits.json", "dataset.json")}
    files = () if config.overwrite or not config.output.exists() else config.output.iterdir()
    for path in files:
        if path.name in own or fnmatch(path.name, ".*.tmp*"):
            continue
        if path.is_dir():
            shutil.copytree(path, config.partial / path.name, dirs_exist_ok=True)
        else:
            shutil.copy2(path, config.partial / path.name)
