"""Kill a training again and again, take it up each time, and compare it with one left alone.

    python tests/kill.py --kills 25

A student trains on a small phantom in a copy of the repository, in a temporary folder; each process
is ended by SIGKILL after a random time. After every kill last.pt and best.pt must load or not be
there yet; in the end every epoch stands once in log.csv, no temporary file is left, and the weights
are those of the run that was left alone, to the bit.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch

from common.files import read_csv
from common.training import checkpoint


def train(repo: Path, data: Path, name: str, epochs: int, *flags: str) -> subprocess.Popen:
    """Start a training of S1."""
    command = [sys.executable, "train.py", "--data", data, "--name", name, "--batch-size", "4"]
    command += ["--epochs", str(epochs), *flags]
    return subprocess.Popen(
        list(map(str, command)), cwd=repo / "student_s1", stdout=subprocess.DEVNULL
    )


def kill_and_resume(repo: Path, data: Path, kills: int, seed: int = 0) -> None:
    """Kill a training `kills` times, check it after each and in the end."""
    epochs = 12 * kills  # enough for all of them, a kill comes within some epochs
    moments, folder = random.Random(seed), repo / "student_s1" / "runs" / "killed"
    assert train(repo, data, "alone", epochs).wait() == 0
    for kill in range(1, kills + 1):
        flags = ("--resume",) if (folder / "config.json").exists() else ()
        process = train(repo, data, "killed", epochs, *flags)
        # Not before there is something to lose, and after that at any moment.
        before = len(read_csv(folder / "log.csv")) if (folder / "log.csv").exists() else 0
        while process.poll() is None and rows(folder) == before:
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.3))
        assert process.poll() is None, "it ended before it could be killed"
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        for weights in ("last", "best"):
            path = folder / f"{weights}.pt"
            if path.exists():
                checkpoint.load(path, "student_s1")
        print(f"kill {kill}: after epoch {rows(folder)}", flush=True)
    assert train(repo, data, "killed", epochs, "--resume").wait() == 0
    compare(folder, folder.with_name("alone"), epochs)


def rows(folder: Path) -> int:
    """Epochs in log.csv, which is replaced whole: it can be read at any moment."""
    path = folder / "log.csv"
    return len(read_csv(path)) if path.exists() else 0


def compare(killed: Path, alone: Path, epochs: int) -> None:
    """The killed run is the other one, in its log and its weights, and has left nothing behind."""
    log = read_csv(killed / "log.csv")
    assert [int(row["epoch"]) for row in log] == list(range(1, epochs + 1))
    assert log == read_csv(alone / "log.csv")
    for name, part in (("last", "objective"), ("best", "model")):
        mine, other = (checkpoint.load(r / f"{name}.pt", "student_s1") for r in (killed, alone))
        assert mine["epoch"] == other["epoch"]
        assert all(torch.equal(v, other[part][k]) for k, v in mine[part].items())
    assert not list(killed.glob(".*.tmp*"))


def main() -> None:
    """A copy of the repository, a phantom, the kills."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=25)
    kills = parser.parse_args().kills
    with tempfile.TemporaryDirectory() as home:
        repo = Path(home)
        for name in ("common", "data_prep", "student_s1"):
            shutil.copytree(ROOT / name, repo / name, ignore=shutil.ignore_patterns("runs"))
        steps = (
            ("make_phantom.py", "--patients", "8", "--size", "64", "--thickness", "14"),
            ("slice_nifti.py", "--input", "../data/phantom", "--size", "32"),
        )
        for step in steps:
            subprocess.run([sys.executable, *step], cwd=repo / "data_prep", check=True)
        kill_and_resume(repo, repo / "data" / "spleen2d", kills)
    print(f"{kills} kills: every epoch once, every checkpoint loads, weights equal to the bit")


if __name__ == "__main__":
    main()
