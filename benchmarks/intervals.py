"""How often a study's 95 % intervals hold, and what gains they can show: by simulation.

    python intervals.py                       the two tables of docs/METHOD.md, some minutes
    python intervals.py --draws 4000          longer, and more exact

Values are drawn from the model that `common/evaluation/intervals.py` assumes, with the spreads seen
on two data sets. *Coverage*: how often the interval holds the true mean; next to it that of a
percentile bootstrap over patients, which knows no trainings. *Power*: how often an
interval excludes 0 where the true gain is 1, 2 or 3 Dice points. Prints Markdown tables.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from scipy import stats
from tqdm import tqdm

from common.config import Config as Base
from common.config import launch, option
from common.evaluation.intervals import Estimate, estimate, patient_means
from common.study.tables import markdown


class Spread(NamedTuple):
    """Standard deviations of a gain in Dice points: of patients, trainings, folds, and the rest."""

    patient: float
    training: float
    fold: float
    rest: float


# Spleen CT (18 patients, 3 folds): one seed's gain has a standard deviation of 5.0 over patients,
# the mean of three seeds 2.9. Cardiac MR (ACDC, 16 patients, 3 seeds): docs/LOG.md, 11; the
# others: gains that differ from patient to patient, trainings that are alike, folds that are not.
SPREADS = {
    "spleen CT": Spread(0.5, 1.5, 0.0, 5.0),
    "spleen CT, trainings alike": Spread(0.5, 0.0, 0.0, 5.0),
    "cardiac MR": Spread(1.7, 0.4, 0.0, 2.7),
    "cardiac MR, patients apart": Spread(4.1, 0.4, 0.0, 2.7),
    "cardiac MR, folds apart": Spread(1.7, 0.4, 1.0, 2.7),
}
# Folds, patients in each, seeds.
COVERED = (
    *((1, 6, 1), (1, 6, 3), (1, 16, 2), (1, 20, 2), (1, 50, 2), (1, 20, 3), (1, 50, 3), (1, 50, 5)),
    *((3, 6, 3), (5, 16, 2)),
)
POWERED = ((1, 20, 1), (1, 20, 3), (1, 50, 3), (1, 50, 5), (5, 6, 3), (5, 16, 1), (5, 16, 3))
GAINS = (1, 2, 3)


@dataclass
class Config(Base):
    """How exactly."""

    draws: int = option(1000, "simulated studies of each kind", low=1)
    seed: int = option(0, "seed of the draws", low=0)


class Study(NamedTuple):
    """What one simulated study says: its estimate, and a bootstrap's interval."""

    sure: Estimate
    bootstrap: tuple[float, float]


def study(rng, size: tuple[int, int, int], spread: Spread) -> Study:
    """One simulated study in which nothing is gained."""
    folds, patients, seeds = size
    values = {}
    for fold in range(folds):
        level = rng.normal(0, spread.fold) + rng.normal(0, spread.patient, patients)
        for seed in range(seeds):
            rest = rng.normal(0, spread.rest, patients)
            row = level + rng.normal(0, spread.training) + rest
            values[fold, seed] = {f"{fold}-{i}": float(v) for i, v in enumerate(row)}
    means = [*patient_means(values).values()]
    drawn = stats.bootstrap((means,), np.mean, n_resamples=999, method="percentile", rng=rng)
    return Study(estimate(values), drawn.confidence_interval)


def simulate(config: Config, sizes: tuple, spreads: list[str]) -> list[dict[str, str]]:
    """A row for each size and spread: coverage, and power at each of `GAINS`."""
    rows, plans = [], [(size, name) for name in spreads for size in sizes]
    for size, name in tqdm(plans, disable=None, leave=False):
        rng = np.random.default_rng(config.seed)
        studies = [study(rng, size, SPREADS[name]) for _ in range(config.draws)]
        low, high = np.array([(one.sure.low, one.sure.high) for one in studies]).T
        below, above = np.array([one.bootstrap for one in studies]).T
        row = dict(zip(("folds", "patients a fold", "seeds"), map(str, size), strict=True))
        row |= {"spreads": name, "coverage": f"{np.mean((low <= 0) & (high >= 0)):.1%}"}
        row["bootstrap's coverage"] = f"{np.mean((below <= 0) & (above >= 0)):.1%}"
        row["half width"] = f"{np.median(high - low) / 2:.1f}"
        row |= {f"power at {gain}": f"{np.mean(low + gain > 0):.0%}" for gain in GAINS}
        rows.append(row)
    return rows


def main(config: Config) -> None:
    """Print both tables."""
    covered = simulate(config, COVERED, [*SPREADS])
    print(markdown([{k: v for k, v in row.items() if "power" not in k} for row in covered]))
    powered = simulate(config, POWERED, ["spleen CT", "cardiac MR"])
    print(markdown([{k: v for k, v in row.items() if "coverage" not in k} for row in powered]))


if __name__ == "__main__":
    launch(main, Config)
