"""How threads wait is settled before torch is imported, unless the user has settled it."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT, load_script

from common import WAITING, settle_threads


@pytest.mark.parametrize("name", WAITING)
def test_what_the_user_has_set_stays(name):
    environment = {name: "7"}
    settle_threads(environment)
    assert environment == {name: "7"}


@pytest.mark.parametrize("script", ["student_s1/train.py", "benchmarks/training.py"])
def test_it_is_settled_before_torch_is_imported(script):
    """The order in which a script's own imports come, asked of a process that starts as it does."""
    code = f"""
import builtins, os, runpy, sys
honest = builtins.__import__
def watched(name, *rest, **more):
    if name.partition(".")[0] == "torch" and "torch" not in sys.modules:
        print("torch comes after", os.environ.get("GOMP_SPINCOUNT"))
    return honest(name, *rest, **more)
builtins.__import__ = watched
runpy.run_path({str(ROOT / script)!r}, run_name="imported")
"""
    free = {k: v for k, v in os.environ.items() if k not in WAITING}
    done = subprocess.run([sys.executable, "-c", code], env=free, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].startswith("torch comes after 1")


def test_the_benchmark_measures_steps(monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    script = load_script(ROOT / "benchmarks" / "threads.py")
    config = script.Config(batch_size=1, size=32, steps=1)
    assert 0 < script.step_ms({"OMP_NUM_THREADS": "1"}, config) < 60_000
    monkeypatch.setattr(script, "step_ms", lambda setting, _: 20.0 if setting else 10.0)
    script.main(config)
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + len(script.SETTINGS)
    assert rows[2].count("| 20 ") == rows[-1].count("| 10 ") == 3
