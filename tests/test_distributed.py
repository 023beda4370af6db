"""Two gloo processes under torchrun: they train one model and validate as one."""

import os
import subprocess
import sys

import torch
from conftest import ROOT, load_script

from common import checkpoint
from common.engine import evaluate
from common.files import read_csv
from common.runs import start
from common.settings import StudentConfig
from common.unet import student_s1

EVALUATE = """
import sys
sys.path.insert(0, {root!r})
import torch
from common.settings import StudentConfig
from common.engine import evaluate
from common.runs import start
from common.unet import student_s1
from pathlib import Path

config = StudentConfig(data=Path({data!r}), device="cpu", batch_size=4, name="two")
run = start(config, {stage!r}, "student")
torch.manual_seed(3)
result = evaluate(student_s1(), run.val, run, config)
if run.rank == 0:
    print(result)
torch.distributed.barrier()
torch.distributed.destroy_process_group()  # left to the exit, gloo's threads may abort
"""


def torchrun(*command, cwd):
    """Two gloo processes; their output."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
            *("--master-port", str(20000 + os.getpid() % 20000), *map(str, command)),
        ],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_two_processes_train_one_distilled_model(repo, slices):
    teacher = load_script(repo / "teacher_t1_unet/train.py")
    teacher.main(teacher.Config(data=slices, width=4, epochs=1, device="cpu", name="two"))
    weights = repo / "teacher_t1_unet/runs/two/best.pt"
    flags = ("--epochs", 2, "--batch-size", 4, "--device", "cpu", "--name", "two")
    output = torchrun("kd_t1_s1/train.py", *flags, "--teacher", weights, cwd=repo)
    assert output.count("epoch   1/2") == 1  # rank 0 alone speaks
    assert output.count("teacher teacher_t1_unet/runs/two/best.pt: validation Dice") == 1
    folder = repo / "kd_t1_s1" / "runs" / "two"
    assert [row["epoch"] for row in read_csv(folder / "log.csv")] == ["1", "2"]
    best = checkpoint.load(folder / "best.pt", "kd_t1_s1")
    checkpoint.load_weights(student_s1(), best["model"], folder / "best.pt")


def test_two_processes_validate_as_one(stage, slices, tmp_path):
    script = tmp_path / "evaluate.py"
    script.write_text(EVALUATE.format(root=str(ROOT), data=str(slices), stage=str(stage)))
    config = StudentConfig(data=slices, device="cpu", batch_size=4)
    run = start(config, str(stage), "student")
    torch.manual_seed(3)
    alone = evaluate(student_s1(), run.val, run, config)
    assert alone["pooled"]["dice"] > 0  # an untrained network finds something everywhere
    assert str(alone) in torchrun(script, cwd=tmp_path)
