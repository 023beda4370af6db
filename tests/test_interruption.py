"""Ctrl-C, SIGTERM and SIGKILL as a user, a queue or a machine sends them: to real processes."""

import os
import signal
import subprocess
import sys
import time

import pytest
from kill import compare, rows, train

from common import checkpoint
from common.engine import fit
from common.files import UserError
from common.losses import SegmentationObjective
from common.runs import Interruption, start
from common.settings import StudentConfig
from common.unet import student_s1

NUMBERS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}


def wait_until(there, process):
    """Look again and again until something is there, while the process runs."""
    while process.poll() is None and not there():
        time.sleep(0.005)
    assert process.poll() is None, "it ended before it could be interrupted"


def test_the_first_signal_waits_for_the_step_and_a_later_one_does_not():
    interruption = Interruption()
    interruption.check()
    interruption.note(signal.SIGINT, None)
    interruption.note(signal.SIGTERM, None)  # handed on by the process that started this one
    with pytest.raises(KeyboardInterrupt):
        interruption.check()
    interruption.came -= 2
    with pytest.raises(KeyboardInterrupt):
        interruption.note(signal.SIGTERM, None)


def test_a_signal_loses_no_finished_epoch_though_few_are_saved(repo, slices):
    folder, epochs = repo / "student_s1" / "runs" / "rare", 12
    process = train(repo, slices, "rare", epochs, "--save-every", "11")
    wait_until(lambda: rows(folder) >= 2, process)
    assert not (folder / "last.pt").exists()
    process.terminate()
    assert process.wait(60) == NUMBERS[signal.SIGTERM]
    done = rows(folder)
    assert done < 11 and checkpoint.load(folder / "last.pt", "student_s1")["epoch"] == done
    assert train(repo, slices, "rare", epochs, "--resume").wait(60) == 0
    assert train(repo, slices, "often", epochs).wait(60) == 0
    compare(folder, folder.with_name("often"), epochs)


def test_a_signal_to_all_processes_of_a_training_is_no_fault_of_its_loaders(repo, slices):
    folder = repo / "student_s1" / "runs" / "group"
    flags = ("--data", slices, "--name", "group", "--epochs", 5000, "--workers", 2)
    process = subprocess.Popen(
        [sys.executable, "train.py", *map(str, flags), "--batch-size", "4"],
        cwd=repo / "student_s1",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    wait_until(lambda: rows(folder), process)
    os.killpg(process.pid, signal.SIGTERM)  # as a queue does
    output = process.communicate(timeout=60)[0].decode()
    assert process.returncode == NUMBERS[signal.SIGTERM], output
    assert f"stopped; --resume goes on after epoch {rows(folder)}" in output
    assert "Traceback" not in output and "error" not in output


def test_an_error_that_comes_of_a_signal_is_told_as_the_signal(stage, slices, monkeypatch):
    """The loader processes, or another process of the run, have met it before the step ended."""
    config = StudentConfig(data=slices, epochs=1, device="cpu")
    run = start(config, str(stage), "student")

    def broken(*_):
        os.kill(os.getpid(), signal.SIGTERM)
        raise UserError("a loader process was ended from outside")

    monkeypatch.setattr("common.engine.train_one_epoch", broken)
    with pytest.raises(SystemExit) as end:
        fit(SegmentationObjective(student_s1()), run, config)
    assert end.value.code == NUMBERS[signal.SIGTERM]
