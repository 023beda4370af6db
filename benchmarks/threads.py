"""What waiting threads cost: S1's training step under several OpenMP settings, beside other work.

    python threads.py                     idle, and beside one and two other processes
    python threads.py --others 0 --rounds 9

After each parallel part OpenMP's threads wait for the next one, spinning for a while before they
sleep. On a free machine that saves the time to wake them; beside other work each spin takes the
core from a thread that has something to do. Each setting is a process of its own; they take turns,
and each row is also given as a ratio to the default of `common/__init__.py`. Prints a table.
"""

import os
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import WAITING, settle_threads
from common.config import Config as Base
from common.config import launch, option
from common.tables import markdown

OURS = "default here"
SETTINGS = {  # what is set before torch is imported
    "PyTorch's own": {"GOMP_SPINCOUNT": "300000"},  # libgomp's own value for free cores
    **{f"GOMP_SPINCOUNT={n}": {"GOMP_SPINCOUNT": str(n)} for n in (100, 1000, 10_000, 100_000)},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
    "OMP_NUM_THREADS=1": {"OMP_NUM_THREADS": "1"},
    OURS: {},
}
BUSY = "while True: pass"
STEP = """
import statistics, sys, time
sys.path.insert(0, sys.argv[1])
from training import Config, Step
import torch
step = Step("student_s1", False, Config(batch_size=int(sys.argv[2])), torch.device("cpu"))
times = []
for _ in range(2 + int(sys.argv[3])):
    began = time.perf_counter()
    step()
    times.append(1000 * (time.perf_counter() - began))
print(statistics.median(times[2:]))
"""


@dataclass
class Config(Base):
    """What to measure."""

    others: tuple[int, ...] = option((0, 1, 2), "busy processes beside it", low=0, least=1)
    batch_size: int = option(16, "images of 256 pixels per step", low=1)
    steps: int = option(5, "measured steps of each process, after two to warm up", low=1)
    rounds: int = option(3, "processes of each setting", low=1)


def step_ms(setting: dict[str, str], config: Config) -> float:
    """Median time of a step in a process with these variables."""
    free = {k: v for k, v in os.environ.items() if k not in (*WAITING, "OMP_NUM_THREADS")}
    environment = free | setting
    if not setting:
        settle_threads(environment)
    command = [sys.executable, "-c", STEP, str(Path(__file__).parent)]
    command += [str(config.batch_size), str(config.steps)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout)


def beside(others: int, config: Config) -> dict[str, float]:
    """Median time of a step in each setting, beside so many busy processes."""
    busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(others)]
    try:
        rounds = [
            {name: step_ms(setting, config) for name, setting in SETTINGS.items()}
            for _ in range(config.rounds)
        ]
    finally:
        for process in busy:
            process.kill()
    return {name: statistics.median(r[name] for r in rounds) for name in SETTINGS}


def main(config: Config) -> None:
    """Print a row for each setting."""
    found = {others: beside(others, config) for others in config.others}
    rows = []
    for name in SETTINGS:
        row = {"setting": name}
        for others, times in found.items():
            where = "idle" if not others else f"beside {others}"
            row[f"{where}, ms"] = f"{times[name]:.0f}"
            row[f"{where}, ratio"] = f"{times[name] / times[OURS]:.2f}"
        rows.append(row)
    print(f"{os.cpu_count()} cores, batches of {config.batch_size}\n\n{markdown(rows)}")


if __name__ == "__main__":
    launch(main, Config)
