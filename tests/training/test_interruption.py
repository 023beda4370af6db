"""Ctrl-C, SIGTERM and SIGKILL as a user, a queue or a machine sends them: to real processes."""

import gzip
import hashlib
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import pytest
from conftest import run
from kill import compare, rows, train
from server import archive, left

from common.dataset.processes import run_all
from common.errors import UserError
from common.files import lock_folder
from common.losses.segmentation import SegmentationObjective
from common.models.unet import student_s1
from common.settings import StudentConfig
from common.training import checkpoint
from common.training.engine import fit
from common.training.interruption import Interruption
from common.training.runs import start

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
    assert f"stopped; --resume continues after epoch {rows(folder)}" in output
    assert "Traceback" not in output and "error" not in output


def test_an_error_that_comes_of_a_signal_is_told_as_the_signal(stage, slices, monkeypatch):
    """The loader processes, or another process of the run, have met it before the step ended."""
    config = StudentConfig(data=slices, epochs=1, device="cpu")
    started = start(config, str(stage), "student")

    def broken(*_):
        os.kill(os.getpid(), signal.SIGTERM)
        raise UserError("a loader process was ended from outside")

    monkeypatch.setattr("common.training.engine.train_one_epoch", broken)
    with pytest.raises(SystemExit) as end:
        fit(SegmentationObjective(student_s1()), started, config)
    assert end.value.code == NUMBERS[signal.SIGTERM]


def download(repo, server, tmp_path, *flags):
    """Start a download from the test's server."""
    md5 = hashlib.md5(server.content).hexdigest()
    command = ["data_prep/download_task09.py", "--output", tmp_path / "data", "--url", server.url]
    return begin(repo, *command, "--md5", md5, *flags)


def begin(repo, *command):
    """Start a script as a user would."""
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=repo,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )


def end(process, number):
    """Send all processes of a script a signal, as a terminal does, or kill the script alone."""
    if number == signal.SIGKILL:
        process.kill()
    else:
        os.killpg(process.pid, number)
    errors = process.communicate(timeout=30)[1]
    assert process.returncode == NUMBERS[number] and "Traceback" not in errors


@pytest.mark.parametrize("number", NUMBERS)
def test_an_interrupted_download_goes_on_where_it_stopped(server, repo, tmp_path, number):
    server.content, server.pause = archive(("Task09_Spleen/large", os.urandom(6 << 20))), 0.02
    part, folder = tmp_path / "data/Task09_Spleen.tar.part", tmp_path / "data/Task09_Spleen"
    process = download(repo, server, tmp_path)
    wait_until(lambda: part.exists() and part.stat().st_size > 2 << 20, process)
    end(process, number)
    have = part.stat().st_size
    assert not folder.exists() and server.content.startswith(part.read_bytes())
    assert 0 < have < len(server.content)
    server.pause = 0
    assert download(repo, server, tmp_path).wait(30) == 0
    assert server.asked == [None, f"bytes={have}-"]
    assert left(tmp_path) == ["Task09_Spleen"] and (folder / "large").stat().st_size == 6 << 20


@pytest.mark.parametrize("number", NUMBERS)
def test_an_interrupted_unpacking_is_begun_again_from_what_was_fetched(
    server, repo, tmp_path, number
):
    files = [(f"Task09_Spleen/labelsTr/{n}", b"label") for n in range(6000)]
    server.content = archive(*files)
    home, folder = tmp_path / "data/.Task09_Spleen.partial", tmp_path / "data/Task09_Spleen"
    process = download(repo, server, tmp_path)
    wait_until(lambda: (home / "Task09_Spleen/labelsTr/9").exists(), process)
    end(process, number)
    assert not folder.exists() and home.exists() == (number == signal.SIGKILL)
    assert download(repo, server, tmp_path).wait(30) == 0
    assert len(list((folder / "labelsTr").iterdir())) == len(files)
    assert left(tmp_path) == ["Task09_Spleen"] and len(server.asked) == 1


@pytest.mark.parametrize("number", NUMBERS)
def test_an_interrupted_phantom_is_none_and_the_next_start_makes_it_whole(
    repo, phantom, tmp_path, number
):
    home = tmp_path / "phantom"
    flags = ("--patients", 24, "--size", 64, "--thickness", 14, "--output", home)
    process = begin(repo, "data_prep/make_phantom.py", *flags)
    wait_until(lambda: list(home.glob("labelsTr/phantom_*")), process)
    end(process, number)
    assert not (home / "dataset.json").exists()
    for path in home.glob("*/phantom_*"):  # what has its name is whole
        gzip.decompress(path.read_bytes())
    (home / "labelsTr/.phantom_000.nii.1.tmp.gz").write_bytes(b"half of a file")
    run(repo, "data_prep/make_phantom.py", *flags)
    assert len(list(home.glob("*/*"))) == 24 + 24 + 2
    for path in phantom.glob("*Tr/*"):
        assert (home / path.relative_to(phantom)).read_bytes() == path.read_bytes()


def test_a_phantom_that_is_being_made_is_left_alone(repo, tmp_path):
    flags = ("--patients", 2, "--size", 64, "--thickness", 14, "--output", tmp_path / "phantom")
    with lock_folder(tmp_path / "phantom"):
        text = run(repo, "data_prep/make_phantom.py", *flags, code=1)
    assert "being written by another process" in text and not (tmp_path / "phantom").exists()


def test_a_pool_that_breaks_while_it_is_filled_is_one_clear_line(monkeypatch):
    def broken(*_):
        raise BrokenProcessPool

    monkeypatch.setattr(ProcessPoolExecutor, "submit", broken)
    with pytest.raises(UserError, match="ended from outside.*--workers 1"):
        run_all(str, range(9), 2, "cases")
