"""The interval of a mean over patients and trainings: closed forms, references, coverage."""

import warnings

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.regression.mixed_linear_model import MixedLM

from common.evaluation.intervals import _analysis, estimate, holm, patient_means, wilcoxon

# What was seen, in Dice points: standard deviation of patients, trainings, and the rest.
SPLEEN, ACDC = (0.5, 1.5, 5.0), (1.7, 0.4, 2.7)


def draw(rng, patients: int, seeds: int, spread, folds: int = 1, mean: float = 0.0) -> dict:
    """Values by (fold, seed) and patient, of the model that the interval is made for."""
    of_patient, of_training, rest = spread
    found = {}
    for fold in range(folds):
        level = rng.normal(mean, of_patient, patients)
        for seed in range(seeds):
            values = level + rng.normal(0, of_training) + rng.normal(0, rest, patients)
            found[fold, seed] = {f"{fold}-{i}": float(v) for i, v in enumerate(values)}
    return found


def test_one_training_is_the_interval_of_a_t_test():
    values = draw(np.random.default_rng(0), 12, 1, (3, 0, 2), mean=1)
    found = estimate(values)
    expected = stats.ttest_1samp([*values[0, 0].values()], 0)
    assert (found.low, found.high) == pytest.approx(expected.confidence_interval())
    assert found.p == pytest.approx(expected.pvalue)


def test_five_patients_have_none_and_equal_values_no_width():
    assert estimate({(None, 0): dict.fromkeys("abcde", 1.0)}) is None
    same = {(None, s): dict.fromkeys("abcdef", 2.0) for s in range(3)}
    assert estimate(same) == pytest.approx((2.0, 2.0, 2.0, 0.0))
    assert estimate({(None, 0): dict.fromkeys("abcdef", 0.0)}).p == 1


def test_trainings_apart_make_it_that_of_the_trainings():
    """Where all patients gain alike, the number of trainings counts, not that of patients."""
    shifts = np.array([1.0, 2.0, 4.5])
    values = {(None, s): {f"p{i}": shifts[s] for i in range(50)} for s in range(3)}
    found = estimate(values)
    expected = stats.ttest_1samp(shifts, 0).confidence_interval()
    assert (found.low, found.high) == pytest.approx(expected, rel=1e-6)


def test_folds_apart_make_it_that_of_the_folds():
    shifts = [0.0, 1.0, 3.0, 8.0]
    values = {(f, s): {f"{f}-{i}": shifts[f] for i in range(9)} for f in range(4) for s in (0, 1)}
    found = estimate(values)
    expected = stats.ttest_1samp(shifts, 0).confidence_interval()
    assert (found.low, found.high) == pytest.approx(expected, rel=1e-6)


def test_the_mean_squares_are_those_of_a_mixed_model():
    """REML of the crossed random effects, which has the same components where none is 0."""
    values = draw(np.random.default_rng(3), 15, 6, (3.0, 2.0, 1.0), mean=2)
    found = {name: effect.mean_square for name, effect in _analysis(values).items()}
    rows = [(p, s, v) for (_, s), row in values.items() for p, v in row.items()]
    table = pd.DataFrame(rows, columns=["patient", "training", "value"])
    parts = {"patient": "0 + C(patient)", "training": "0 + C(training)"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = MixedLM.from_formula(
            "value ~ 1", table, groups=np.ones(len(table)), vc_formula=parts, re_formula="0"
        )
        fit = model.fit()
    reml = dict(zip(model.exog_vc.names, fit.vcomp, strict=True))
    assert (found["patient"] - found["rest"]) / 6 == pytest.approx(reml["patient"], rel=0.02)
    assert (found["training"] - found["rest"]) / 15 == pytest.approx(reml["training"], rel=0.02)
    assert found["rest"] == pytest.approx(fit.scale, rel=0.02)
    mean, half = estimate(values).mean, estimate(values).high - estimate(values).mean
    assert mean == pytest.approx(fit.params["Intercept"])
    assert half > 1.96 * fit.bse["Intercept"]  # Satterthwaite's t, not the normal's quantile


def test_a_patient_whom_a_training_lacks_still_counts():
    values = draw(np.random.default_rng(0), 10, 3, SPLEEN)
    whole = estimate(values)
    del values[0, 1]["0-4"]
    part = estimate(values)
    assert len(patient_means(values)) == 10
    assert part.low < part.mean < part.high
    assert part.high - part.low == pytest.approx(whole.high - whole.low, rel=0.5)


@pytest.mark.parametrize("spread", [SPLEEN, ACDC], ids=["spleen", "acdc"])
def test_it_covers_what_it_says(spread):
    """20 patients, 3 seeds: from 93 to 97 % (one standard error of this test is 0.9)."""
    rng = np.random.default_rng(1)
    found = [estimate(draw(rng, 20, 3, spread)) for _ in range(600)]
    assert 0.93 <= np.mean([e.low <= 0 <= e.high for e in found]) <= 0.97


def test_wilcoxon_has_its_exact_value_and_its_limit():
    assert wilcoxon([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) == pytest.approx(2 / 2**6)
    assert wilcoxon([0.0, 0.0]) is None


def test_holm_multiplies_the_smallest_by_their_number_and_never_falls():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx(
        {"a": 0.03, "b": 0.06, "c": 0.06}
    )
    assert holm({}) == {}


def test_folds_of_one_patient_count_as_patients():
    values = np.random.default_rng(0).normal(size=(6, 2))
    results = {(f, s): {f"p{f}": values[f, s]} for f in range(6) for s in range(2)}
    found = estimate(results)
    mean, half = values.mean(), stats.t.ppf(0.975, 5) * values.mean(1).std(ddof=1) / 6**0.5
    assert (found.low, found.high) == (pytest.approx(mean - half), pytest.approx(mean + half))
    few = {(None, 0): {f"p{i}": float(i) for i in range(6)}, (None, 1): {"p0": 1.0}}
    assert estimate(few).low < estimate(few).high
