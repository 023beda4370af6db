"""What waiting threads cost: S1's training step under several OpenMP settings, alone and not alone.

    python threads.py                     small steps; some minutes
    python threads.py --batch-size 16 --size 256 --steps 5

After each parallel part OpenMP's threads wait for the next one, spinning for a while before they
sleep. On a free machine that saves the time to wake them; with other work running each spin takes
the core from a thread that has something to do. Each setting is measured *idle*, *busy* (beside a
process that computes on one core), and *twice* (two such trainings at once). Prints a table of
milliseconds per step; the last row is what `common/__init__.py` sets.
"""

import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import WAITING, settle_threads
from common.config import Config as Base
from common.config import launch, option
from common.study.tables import markdown

SETTINGS = {  # what is set before torch is imported
    "PyTorch's own": {"GOMP_SPINCOUNT": "300000"},  # libgomp's own value for free cores
    **{f"GOMP_SPINCOUNT={n}": {"GOMP_SPINCOUNT": str(n)} for n in (100, 10_000, 100_000)},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
    "OMP_NUM_THREADS=1": {"OMP_NUM_THREADS": "1"},
    "default here": {},
}
CASES = ("idle", "busy", "twice")
BUSY = "while True: pass"
STEP = """
import statistics, sys, time
sys.path.insert(0, sys.argv[1])
from training import Config, Step
import torch
batch_size, steps, size = map(int, sys.argv[2:])
config = Config(batch_size=batch_size, size=size)
step, times = Step("student_s1", False, config, torch.device("cpu")), []
for _ in range(2 + steps):
    began = time.perf_counter()
    step()
    times.append(1000 * (time.perf_counter() - began))
print(statistics.median(times[2:]))
"""


@dataclass
class Config(Base):
    """What to measure."""

    cases: tuple[str, ...] = option(CASES, "what runs at the same time", choices=CASES, least=1)
    batch_size: int = option(4, "images per step", low=1)
    size: int = option(80, "height and width of the images", low=16)
    steps: int = option(25, "measured steps of each process, after two to warm up", low=1)
    rounds: int = option(1, "processes of each setting and case", low=1)


def step_ms(setting: dict[str, str], config: Config) -> float:
    """Median time of a step in a process with these variables."""
    free = {k: v for k, v in os.environ.items() if k not in (*WAITING, "OMP_NUM_THREADS")}
    environment = free | setting
    if not setting:
        settle_threads(environment)
    command = [sys.executable, "-c", STEP, str(Path(__file__).parent)]
    command += [str(config.batch_size), str(config.steps), str(config.size)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout)


def measure(case: str, setting: dict[str, str], config: Config) -> float:
    """Median time of a step in one of the cases; of two at once, of both."""
    busy = [subprocess.Popen([sys.executable, "-c", BUSY])] if case == "busy" else []
    try:
        with ThreadPoolExecutor(2) as pool:
            times = pool.map(lambda _: step_ms(setting, config), range(1 + (case == "twice")))
            return statistics.median(times)
    finally:
        for process in busy:
            process.kill()


def main(config: Config) -> None:
    """Print a row for each setting."""
    rows = []
    for name, setting in SETTINGS.items():
        row = {"setting": name}
        for case in config.cases:
            rounds = [measure(case, setting, config) for _ in range(config.rounds)]
            row[f"{case}, ms"] = f"{statistics.median(rounds):.0f}"
        rows.append(row)
    print(f"{os.cpu_count()} cores, {config.batch_size} x {config.size} pixels\n\n{markdown(rows)}")


if __name__ == "__main__":
    launch(main, Config)
