"""How sure a mean over patients and trainings is: its 95 % confidence interval, and tests.

A value is one patient's, of one training (a fold and a seed). Other patients, other seeds and other
folds would give other values, so all three are random effects, patients crossed with the trainings
of their fold:

    value = mean + fold + patient + training + rest

The variance of the mean follows from the mean squares (MS) of that analysis of variance, with
Satterthwaite's degrees of freedom (Biometrics Bulletin 2:110, 1946):

    variance = max(MS patient, MS training, MS patient + MS training - MS rest, MS fold) / values

It is the analysis of studies in which several readers read the same cases (Obuchowski and Rockette
1995; Hillis, Statistics in Medicine 26:596, 2007), with trainings as readers. docs/METHOD.md has
its coverage. With one seed a training's chance is told from its fold's only by other folds; with
one training in all it is not in the interval.
"""

import warnings
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from scipy import stats

LEAST = 6  # patients; for fewer an interval would be little more than their range
Run = tuple  # (fold, seed); the fold is None where there is one split


class Estimate(NamedTuple):
    """A mean, its 95 % confidence interval, and the two-sided p of "it is 0"."""

    mean: float
    low: float
    high: float
    p: float


class Effect(NamedTuple):
    """A row of an analysis of variance."""

    squares: float
    freedom: float

    @property
    def mean_square(self) -> float:
        """0 where this effect cannot be estimated."""
        return self.squares / self.freedom if self.freedom else 0.0


def estimate(values: Mapping[Run, Mapping[str, float]]) -> Estimate | None:
    """The mean over patients, each averaged over its trainings first, and how sure it is.

    `values` holds each training's values by patient. None with fewer than six patients.
    """
    means = patient_means(values)
    if len(means) < LEAST:
        return None
    mean, count = float(np.mean([*means.values()])), sum(map(len, values.values()))
    variance, freedom = _variance(_analysis(values))
    error = np.sqrt(variance / count)
    if error <= 1e-9 * abs(mean):  # equal values, but for rounding
        return Estimate(mean, mean, mean, 0.0 if mean else 1.0)
    half = stats.t.ppf(0.975, freedom) * error
    p = 2 * stats.t.sf(abs(mean) / error, freedom)
    return Estimate(mean, float(mean - half), float(mean + half), float(p))


def patient_means(values: Mapping[Run, Mapping[str, float]]) -> dict[str, float]:
    """Each patient's mean over the trainings that scored it."""
    of_patient: dict[str, list[float]] = {}
    for row in values.values():
        for patient, value in row.items():
            of_patient.setdefault(patient, []).append(value)
    return {patient: float(np.mean(each)) for patient, each in sorted(of_patient.items())}


def _analysis(values: Mapping[Run, Mapping[str, float]]) -> dict[str, Effect]:
    """The effects `fold`, `patient`, `training` and `rest`; the last three within each fold."""
    folds: dict = {}
    for (fold, seed), row in values.items():
        folds.setdefault(fold, []).extend((seed, patient, v) for patient, v in row.items())
    each = [_within(rows) for rows in folds.values()]
    summed = {
        name: Effect(*np.sum([effects[name] for effects in each], axis=0))
        for name in ("patient", "training", "rest")
    }
    groups = [np.array([value for *_, value in rows]) for rows in folds.values()]
    whole = np.concatenate(groups).mean()
    between = sum(len(group) * (group.mean() - whole) ** 2 for group in groups)
    return {"fold": Effect(between, len(groups) - 1), **summed}


def _within(rows: list[tuple]) -> dict[str, Effect]:
    """The effects in one fold's rows (seed, patient, value); type II, so that cells may be
    missing."""
    import pandas as pd  # these take a second to import, and only study tables need them
    from statsmodels.formula.api import ols
    from statsmodels.stats.anova import anova_lm

    table = pd.DataFrame(rows, columns=["training", "patient", "value"])
    nothing = Effect(0.0, 0)
    if table.training.nunique() == 1:
        fit = ols("value ~ 1", table).fit()
        return {"patient": Effect(fit.ssr, fit.df_resid), "training": nothing, "rest": nothing}
    patients = table.patient.nunique()
    levels = patients + table.training.nunique() - 1
    if patients == 1 or len(table) <= levels:  # trainings cannot be told apart from the rest
        means = table.groupby("patient").value.mean()
        squares = ((means - means.mean()) ** 2).sum() * len(table) / patients
        return {"patient": Effect(squares, patients - 1), "training": nothing, "rest": nothing}
    fit = ols("value ~ C(patient) + C(training)", table).fit()
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # F, which is not used, is 0 / 0 where values are equal
        anova = anova_lm(fit, typ=2)
    names = {"patient": "C(patient)", "training": "C(training)", "rest": "Residual"}
    return {name: Effect(*anova.loc[row, ["sum_sq", "df"]]) for name, row in names.items()}


def _variance(effects: Mapping[str, Effect]) -> tuple[float, float]:
    """Number of values x the variance of their mean, and its degrees of freedom."""
    parts = [effects[name] for name in ("patient", "training", "rest")]
    patient, training, rest = (part.mean_square for part in parts)
    both = patient + training - rest
    spread = sum(part.mean_square**2 / part.freedom for part in parts if part.freedom)
    choices = [
        (effects[name].mean_square, effects[name].freedom) for name in effects if name != "rest"
    ]
    if both > 0 and spread:
        choices.append((both, both**2 / spread))
    return max(choices)


def wilcoxon(values: Iterable[float]) -> float | None:
    """p of the two-sided Wilcoxon signed-rank test; None where no value differs from 0.

    It is over patients' means and ignores the chance of a training. With n patients it cannot fall
    below 2 / 2^n: 0.03 for six.
    """
    values = [*values]
    return float(stats.wilcoxon(values).pvalue) if np.any(values) else None


def holm(chances: Mapping[str, float]) -> dict[str, float]:
    """p values corrected for their number (Holm, Scandinavian Journal of Statistics 6:65, 1979)."""
    from statsmodels.stats.multitest import multipletests

    if not chances:
        return {}
    corrected = multipletests([*chances.values()], method="holm")[1]
    return dict(zip(chances, map(float, corrected), strict=True))
