"""What happens to long runs: kills, signals, dying processes, full disks, broken indexes."""

import errno
import os
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, damaged, run
from kill import kill_and_resume, rows

from common.config import Config, launch, option
from common.dataset.loading import SliceDataset, loader, unbroken
from common.dataset.slices import read_set
from common.dataset.splits import read_splits
from common.errors import UserError
from common.files import lock_folder
from common.models.unet import student_s1
from common.training import checkpoint


def test_a_killed_training_loses_nothing(repo, slices):
    kill_and_resume(repo, slices, kills=3)


def test_a_signal_ends_a_training_in_order_and_meanwhile_a_second_one_is_refused(repo, slices):
    folder = repo / "student_s1" / "runs" / "signals"
    flags = ("--data", slices, "--name", "signals", "--epochs", 5000, "--batch-size", 8)
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        command = [sys.executable, "train.py", *map(str, flags), "--workers", "2"]
        before = rows(folder)
        process = subprocess.Popen(
            command, cwd=repo / "student_s1", stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        while process.poll() is None and rows(folder) == before:
            time.sleep(0.01)
        if number == signal.SIGINT:
            text = run(repo, "student_s1/train.py", *flags, "--overwrite", code=1)
            assert "being written by another process" in text
        process.send_signal(number)
        output = process.communicate(timeout=60)[0].decode()
        assert process.returncode == code and "Traceback" not in output
        assert f"stopped; --resume continues after epoch {rows(folder)}" in output
        assert not list(folder.glob(".*.tmp*"))
        flags = ("--name", "signals", "--resume")  # the rest is what the run was begun with


def test_an_interrupted_slicing_ends_in_order_and_goes_on(repo, phantom, tmp_path):
    flags = ("--input", phantom, "--output", tmp_path / "out", "--size", 1024, "--workers", 1)
    command = [sys.executable, "data_prep/slice_nifti.py", *map(str, flags)]
    process = subprocess.Popen(
        command, cwd=repo, start_new_session=True, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    while process.poll() is None and not list(tmp_path.glob("out.partial/.done/*.json")):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to every process
    errors = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 130 and "Traceback" not in errors
    assert not (tmp_path / "out").exists()
    assert "patients" in run(repo, "data_prep/slice_nifti.py", *flags)


def children(process):
    """Process ids of the running children of a process, as Linux tells them."""
    return [int(n) for n in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def running(process):
    """Whether it runs; one that has ended and that nobody has asked after does not."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="asks Linux for the processes")
def test_workers_end_with_a_slicing_that_is_killed(repo, phantom, tmp_path):
    flags = ("--input", phantom, "--output", tmp_path / "out", "--size", 512, "--workers", 2)
    command = [sys.executable, "data_prep/slice_nifti.py", *map(str, flags)]
    process = subprocess.Popen(command, cwd=repo, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(tmp_path.glob("out.partial/.done/*.json")):
        time.sleep(0.01)
    workers = children(process.pid)
    process.kill()
    process.wait()
    assert len(workers) == 2
    until = time.monotonic() + 10
    while any(map(running, workers)) and time.monotonic() < until:
        time.sleep(0.01)
    assert not any(map(running, workers))
    assert "patients" in run(repo, "data_prep/slice_nifti.py", *flags)
    data = read_set(tmp_path / "out")
    SliceDataset(data, data.slices)


def test_two_slicings_of_one_set_do_not_mix(repo, phantom, tmp_path):
    flags = ("--input", phantom, "--output", tmp_path / "out", "--size", 256, "--workers", 1)
    command = [sys.executable, "data_prep/slice_nifti.py", *map(str, flags)]
    both = [
        subprocess.Popen(command, cwd=repo, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
        for _ in range(2)
    ]
    errors = [process.communicate(timeout=120)[1].decode() for process in both]
    assert 0 in [process.returncode for process in both]
    for process, text in zip(both, errors, strict=True):
        assert process.returncode == 0 or "being written by another process" in text
    data = read_set(tmp_path / "out")
    SliceDataset(data, data.slices)


def test_one_process_a_run_folder(tmp_path):
    code = "from common.files import lock_folder; from pathlib import Path; import sys;"
    code += "lock = lock_folder(Path(sys.argv[1])); print('locked', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(tmp_path / "runs/a")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    ) as other:
        assert other.stdout.readline().strip() == b"locked"
        with pytest.raises(UserError, match="runs/a is being written by another process"):
            lock_folder(tmp_path / "runs/a")
        assert lock_folder(tmp_path / "runs/b")
        other.kill()
        other.wait()
    assert lock_folder(tmp_path / "runs/a")


class Dying(torch.utils.data.Dataset):
    """A data set whose process ends while it reads."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_loader_process_that_dies_is_one_clear_line():
    with pytest.raises(UserError, match="loader process was ended from outside"):
        list(unbroken(loader(Dying(), 1, workers=1)))


class Wrong(Dying):
    """A data set with a fault of ours."""

    def __getitem__(self, index):
        raise RuntimeError("a bug of ours")


def test_a_bug_in_a_loader_process_is_not_taken_for_a_kill():
    with pytest.raises(RuntimeError, match="a bug of ours"):
        list(unbroken(loader(Wrong(), 1, workers=1)))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_vanishes_during_a_training_is_named(own_slices, workers):
    data = read_set(own_slices)
    dataset = SliceDataset(data, data.slices, cache_mb=0)
    name = data.slices[3].name
    (own_slices / "images" / f"{name}.png").unlink()
    with pytest.raises(UserError) as error:
        list(unbroken(loader(dataset, 2, workers=workers)))
    assert str(error.value).endswith(f"images/{name}.png is missing.")
    assert "\n" not in str(error.value)


@dataclass
class Flags(Config):
    size: int = option(3, "some flag")
    width: int = option(3, "another")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            PermissionError(errno.EACCES, "Permission denied", "/data/runs"),
            "/data/runs: Permission",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device."),
        (OSError(errno.EROFS, "Read-only file system", "runs"), "runs: Read-only file system."),
        (torch.OutOfMemoryError("CUDA out of memory"), "lower --batch-size or --width."),
    ],
)
def test_what_the_machine_lacks_is_one_clear_line(error, words, monkeypatch, capsys):
    def main(config):
        raise error

    monkeypatch.setattr("sys.argv", ["x.py"])
    with pytest.raises(SystemExit) as exit:
        launch(main, Flags)
    assert str(exit.value.code).startswith("error: ") and words in exit.value.code


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch):
    for error in (OSError(errno.EIO, "Input/output error"), RuntimeError("a bug")):

        def main(config, error=error):
            raise error

        monkeypatch.setattr("sys.argv", ["x.py"])
        with pytest.raises(type(error)):
            launch(main, Flags)


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    checkpoint.save(path, {"stage": "student_s1", "model": student_s1().state_dict()})
    before = path.read_bytes()

    def full(content, target):
        target.write_bytes(before[:1000])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match=r"No space left on device.*the old one stays"):
        checkpoint.save(path, {"stage": "student_s1", "model": {}})
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["last.pt"]


@pytest.mark.parametrize("file", ["manifest.csv", "splits.json", "dataset.json"])
def test_a_broken_index_is_read_or_refused_and_nothing_else(own_slices, file):
    path, refused = own_slices / file, 0
    whole = path.read_bytes()
    rng = np.random.default_rng(1)
    lines = whole.splitlines(keepends=True)
    shuffled = [b"".join(rng.permutation(lines).tolist()) for _ in range(20)]
    doubled = [b"".join(lines[: k + 1] + lines[k:]) for k in range(0, len(lines), 7)]
    for broken in (
        *damaged(whole, 200),
        *shuffled,
        *doubled,
        b"",
        b"null",
        b"[]",
        b"{}",
        b"\0" * 9,
    ):
        path.write_bytes(broken)
        try:
            data = read_set(own_slices)
            splits = read_splits(data, "splits.json", ("train", "val", "test"))
            SliceDataset(data, data.of(splits["val"]))
        except UserError as error:
            refused += 1
            assert str(error)
    assert refused > 50


def test_a_broken_checkpoint_is_refused(tmp_path):
    path = tmp_path / "best.pt"
    checkpoint.save(path, {"stage": "student_s1", "model": student_s1().state_dict()})
    refused = 0
    for broken in damaged(path.read_bytes(), 60):
        path.write_bytes(broken)
        try:
            content = checkpoint.load(path, "student_s1")
            checkpoint.load_weights(student_s1(), content["model"], path)
        except UserError as error:
            refused += 1
            assert "best.pt" in str(error)
    assert refused > 55  # zip has a few bytes that nobody reads


def test_a_broken_pickle_in_a_whole_archive_is_refused(tmp_path):
    path, broken = tmp_path / "best.pt", tmp_path / "broken.pt"
    content = {"stage": "student_s1", "model": student_s1().state_dict()}
    checkpoint.save(path, {**content, "patients": {"train": ["a"]}})
    with zipfile.ZipFile(path) as old:
        parts = {name: old.read(name) for name in old.namelist()}
    pickled = next(name for name in parts if name.endswith("data.pkl"))
    for number, changed in enumerate(damaged(parts[pickled], 300)):
        with zipfile.ZipFile(broken, "w", zipfile.ZIP_STORED) as new:
            for name, value in parts.items():
                new.writestr(name, changed if name == pickled else value)
        try:
            content = checkpoint.load(broken, "student_s1")
            checkpoint.load_weights(student_s1(), checkpoint.model_weights(content), broken)
            checkpoint.check_content(content, broken)
        except UserError as error:
            assert "broken.pt" in str(error), number
