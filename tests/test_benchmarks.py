"""The benchmarks run, and what they print are ratios of what they measured."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT, load_script


@pytest.fixture
def benchmark(monkeypatch):
    """Load a script of benchmarks/ as if it were run."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return lambda name: load_script(ROOT / "benchmarks" / f"{name}.py")


def test_training_steps(benchmark, tmp_path, capsys):
    script, out = benchmark("training"), tmp_path / "found.json"
    models = ("student_s1", "kd_t1_s1")
    script.main(script.Config(models=models, size=32, rounds=2, device="cpu", output=out))
    found = json.loads(out.read_text())
    assert [s["stage"] for s in found["stages"]] == [*models]
    for stage in found["stages"]:
        assert stage["speed_up_low"] <= stage["speed_up"] <= stage["speed_up_high"]
        share = stage["plain_flops"] / found["peak_flops"]["plain"]
        assert 0 < stage["plain_share_of_peak"] == share
    # Two decoders of T1 in the plain form, one in the default one.
    plain, default = (found["stages"][1][f"{form}_ms_an_image"] for form in ("plain", "default"))
    operations = [
        found["stages"][1][f"{form}_flops"] * ms
        for form, ms in (("plain", plain), ("default", default))
    ]
    assert operations[0] > 1.2 * operations[1]
    assert "| kd_t1_s1 " in capsys.readouterr().out


def test_the_plain_teacher_is_whole_and_the_default_one_is_folded(benchmark):
    script = benchmark("training")
    objectives = {}
    for plain in (True, False):
        config = script.Config(size=32, batch_size=2, device="cpu")
        objectives[plain] = script.Step(
            "kd_t1_s1", plain, config, script.pick_device("cpu")
        ).objective
    norms = {
        plain: sum("BatchNorm" in type(m).__name__ for m in objective.teacher.modules())
        for plain, objective in objectives.items()
    }
    assert norms == {True: 26, False: 0}


def test_inference_of_the_networks(benchmark, tmp_path):
    script, out = benchmark("inference"), tmp_path / "found.json"
    networks = ("T1", "S1")
    script.main(
        script.Config(networks=networks, size=32, batches=(2,), rounds=2, device="cpu", output=out)
    )
    t1, s1 = json.loads(out.read_text())["networks"]
    assert (t1["parameters"], s1["parameters"]) == (43_236_036, 57_297)
    assert s1["multiply_adds"] < t1["multiply_adds"] / 10
    assert s1["default_slices_a_second"] > t1["default_slices_a_second"]


def test_an_epoch_against_its_steps(tmp_path):
    out = tmp_path / "found.json"
    flags = ("--models", "student_s1", "--size", 32, "--slices", 24, "--rounds", 1)
    command = [sys.executable, ROOT / "benchmarks/epoch.py", *flags, "--operations", 3]
    command += ["--workers", 0, "--device", "cpu", "--output", out]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    (stage,) = json.loads(out.read_text())["stages"]
    assert stage["slices"] == 24
    assert stage["epoch 0_over_steps"] > 0 and stage["cold_over_steps"] > 0
    assert 0 < sum(stage["operations"].values()) < 1 and len(stage["operations"]) == 3
    assert stage["peak_memory_mb"] > 100


def test_slicing(benchmark, tmp_path):
    script, out = benchmark("data_prep"), tmp_path / "found.json"
    script.main(script.Config(volumes=(1, 2), workers=(1,), thickness=40, output=out))
    found = json.loads(out.read_text())
    first, second = found["rows"]
    assert second["slices"] > first["slices"] > 0
    assert out.with_suffix(".png").exists()
    line = found["fit"]["1"]  # through two points: both lie on it
    for row in (first, second):
        there = line["start_seconds"] + line["seconds_a_slice"] * row["slices"]
        assert there == pytest.approx(row["seconds"])


def test_intervals_hold_what_they_say_and_larger_gains_are_seen_more_often(
    benchmark, monkeypatch, capsys
):
    script = benchmark("intervals")
    for name in ("COVERED", "POWERED"):
        monkeypatch.setattr(script, name, ((1, 8, 2),))
    script.main(script.Config(draws=40))
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if "spleen" in line]
    assert len(rows) == 3 and all(float(row[5].strip(" %")) > 80 for row in rows[:2])
    power = [int(cell.strip(" %")) for cell in rows[2][6:9]]
    assert power == sorted(power) and power[0] < power[2]
