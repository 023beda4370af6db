"""The flags of every script that writes a slice data set."""

from dataclasses import dataclass
from pathlib import Path

from common.config import Config, option
from common.settings import DATA


@dataclass
class SliceSetConfig(Config):
    """What every script has that writes a slice data set."""

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
