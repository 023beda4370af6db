"""slice_nifti.py on phantom CT of 512x512 voxels a slice: speed, memory, cost against their number.

    python data_prep.py
    python data_prep.py --volumes 2 4 8 16 --workers 1 2 4

Each measurement is a process of its own: the seconds and the largest memory of any one process are
those that a user has. Writes data_prep.json and data_prep.png into results/benchmarks/.
"""

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from matplotlib.figure import Figure

from common import config as base
from common.config import launch, option
from common.evaluation.figures import save_figure
from common.files import ROOT, read_csv, shown, write_json
from common.study.tables import markdown


@dataclass
class Config(base.Config):
    """How many volumes and processes."""

    volumes: tuple[int, ...] = option((1, 2, 4, 8), "numbers of volumes", low=1, least=1)
    workers: tuple[int, ...] = option((1, 2), "numbers of processes", low=1, least=1)
    thickness: float = option(3.0, "slice thickness in mm: about 100 slices a volume at 3", low=0.1)
    output: Path = option(
        ROOT / "results/benchmarks/data_prep.json", "JSON file to write; the figure goes next to it"
    )


def script(name: str, *flags) -> tuple[float, float]:
    """Run a script of data_prep/: its seconds, and the MB of the largest of its processes."""
    began = time.perf_counter()
    command = [sys.executable, ROOT / "data_prep" / name, *flags]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise subprocess.CalledProcessError(os.waitstatus_to_exitcode(status), command)
    return time.perf_counter() - began, usage.ru_maxrss * 1024 / 1e6


def measure(home: Path, config: Config) -> list[dict]:
    """A row for each number of volumes and of processes."""
    rows = []
    for count in config.volumes:
        volumes = home / f"volumes{count}"
        flags = ("--patients", count, "--unlabelled", 0, "--thickness", config.thickness)
        script("make_phantom.py", "--output", volumes, "--size", 512, *flags)
        for workers in config.workers:
            out = home / f"out{count}x{workers}"
            seconds, memory = script(
                "slice_nifti.py", "--input", volumes, "--output", out, "--workers", workers
            )
            slices = len(read_csv(out / "manifest.csv"))
            row = {"volumes": count, "workers": workers, "slices": slices, "seconds": seconds}
            rows.append({**row, "slices_a_second": slices / seconds, "largest_process_mb": memory})
            print(f"{count} volumes, --workers {workers}: {seconds:.1f} s", flush=True)
    return rows


def draw(path: Path, rows: list[dict]) -> None:
    """Seconds against the number of slices, one line per number of processes."""
    figure = Figure((5.5, 3.6), layout="constrained")
    axis = figure.subplots()
    for workers in sorted({row["workers"] for row in rows}):
        with_workers = [row for row in rows if row["workers"] == workers]
        x, y = ([row[key] for row in with_workers] for key in ("slices", "seconds"))
        axis.plot(x, y, "o-", label=f"--workers {workers}")
    axis.set(xlabel="slices of 512x512 voxels", ylabel="seconds", xlim=(0, None), ylim=(0, None))
    axis.grid(alpha=0.25)
    axis.legend(frameon=False)
    save_figure(path, figure)


def main(config: Config) -> None:
    """Measure, print a table, write the JSON and the figure."""
    with tempfile.TemporaryDirectory() as home:
        rows = measure(Path(home), config)
    slopes = {}
    for workers in config.workers:
        with_workers = [row for row in rows if row["workers"] == workers]
        if len(with_workers) > 1:
            x, y = ([row[key] for row in with_workers] for key in ("slices", "seconds"))
            slope, start = np.polyfit(x, y, 1)
            slopes[workers] = {"seconds_a_slice": float(slope), "start_seconds": float(start)}
    write_json(config.output, {"rows": rows, "fit": slopes})
    draw(config.output.with_suffix(".png"), rows)
    cells = [
        {k: f"{v:.1f}" if isinstance(v, float) else str(v) for k, v in r.items()} for r in rows
    ]
    print(f"\n{markdown(cells)}")
    for workers, fit in slopes.items():
        slope, begin = 1000 * fit["seconds_a_slice"], fit["start_seconds"]
        print(f"--workers {workers}: {slope:.1f} ms per slice plus {begin:.1f} s to start")
    print(f"-> {shown(config.output.resolve())}")


if __name__ == "__main__":
    launch(main, Config)
