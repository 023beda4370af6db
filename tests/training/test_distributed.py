"""Two gloo processes under torchrun: they train one model and validate as one."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT, load_script
from kill import rows
from small_trainings import train_plain

from common.files import read_csv
from common.models.unet import student_s1
from common.settings import StudentConfig
from common.training import checkpoint
from common.training.engine import evaluate
from common.training.runs import start

EVALUATE = """
import sys
sys.path.insert(0, {root!r})
import torch
from common.settings import StudentConfig
from common.training.engine import evaluate
from common.training.runs import start
from common.models.unet import student_s1
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

ACCUMULATE = """
import sys
sys.path[:0] = [{root!r}, {root!r} + "/tests"]
from pathlib import Path
from small_trainings import train_plain

train_plain(Path({stage!r}), Path({data!r}), "two", batch_size=2, accumulate=3)
"""


def begin(*command, cwd):
    """Two gloo processes under torchrun, in a process group of their own."""
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
            *("--master-port", str(20000 + os.getpid() % 20000), *map(str, command)),
        ],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def torchrun(*command, cwd, within=300):
    """Two gloo processes, to their end; their output."""
    process = begin(*command, cwd=cwd)
    output = process.communicate(timeout=within)[0]
    assert process.returncode == 0, output
    return output


def test_two_processes_train_one_distilled_model_and_one_goes_on(repo, slices, capsys):
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
    alone = load_script(repo / "kd_t1_s1/train.py")
    again = {"data": slices, "batch_size": 4, "device": "cpu", "name": "two", "resume": True}
    alone.main(alone.Config(teacher=weights, epochs=3, **again))
    assert "2 processes before, 1 now" in capsys.readouterr().out
    assert [row["epoch"] for row in read_csv(folder / "log.csv")] == ["1", "2", "3"]


def test_two_processes_validate_as_one(stage, slices, tmp_path):
    script = tmp_path / "evaluate.py"
    script.write_text(EVALUATE.format(root=str(ROOT), data=str(slices), stage=str(stage)))
    config = StudentConfig(data=slices, device="cpu", batch_size=4)
    run = start(config, str(stage), "student")
    torch.manual_seed(3)
    alone = evaluate(student_s1(), run.val, run, config)
    assert alone["pooled"]["dice"] > 0  # an untrained network finds something everywhere
    assert str(alone) in torchrun(script, cwd=tmp_path)


def test_two_processes_that_add_batches_up_are_one_with_the_large_batch(stage, slices, tmp_path):
    alone, _ = train_plain(stage, slices, "alone", batch_size=12)  # its last batch is short
    script = tmp_path / "accumulate.py"
    script.write_text(ACCUMULATE.format(root=str(ROOT), data=str(slices), stage=str(stage)))
    torchrun(script, cwd=tmp_path)
    folder = stage.parent / "runs"
    both = checkpoint.load(folder / "two" / "last.pt", "stage")["objective"]
    assert alone.keys() == both.keys()
    assert all(torch.allclose(value, both[name], atol=2e-6) for name, value in alone.items())
    rates = [[row["lr"] for row in read_csv(folder / n / "log.csv")] for n in ("alone", "two")]
    assert rates[0] == rates[1]


@pytest.mark.parametrize("to_all", [False, True], ids=["SIGTERM to torchrun", "Ctrl-C to all"])
def test_a_signal_ends_two_processes_in_order_and_their_run_goes_on(repo, slices, to_all):
    folder = repo / "student_s1" / "runs" / f"two_{to_all}"
    command = ("student_s1/train.py", "--data", slices, "--name", folder.name, "--batch-size", 4)
    process = begin(*command, "--epochs", 5000, "--save-every", 4000, cwd=repo)
    while process.poll() is None and rows(folder) < 2:
        time.sleep(0.005)
    if to_all:
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.terminate()
    output = process.communicate(timeout=20)[0]  # torchrun would kill after 30 s
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    done = rows(folder)
    assert f"stopped; --resume continues after epoch {done}" in output
    assert 'train.py", line' not in output and "gloo" not in output  # torchrun's own trace alone
    assert checkpoint.load(folder / "last.pt", "student_s1")["epoch"] == done
    torchrun(*command, "--epochs", done + 1, "--resume", cwd=repo)
    assert [int(row["epoch"]) for row in read_csv(folder / "log.csv")] == [*range(1, done + 2)]
