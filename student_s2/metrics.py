"""Score S2's predictions: Dice, IoU, recall and precision, per patient and pooled over slices.

    python metrics.py

Prints the table; writes metrics_per_case.csv, summary.json and report.html, a page that shows it
all, into runs/NAME.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.config import launch
from common.evaluation.report import write_report
from common.evaluation.score_run import data_of, score_run, table
from common.settings import MetricsConfig


def main(config: MetricsConfig) -> None:
    """Score the run."""
    folder = Path(__file__).resolve().parent / "runs" / config.name
    data = data_of(folder, config.data)
    print(table(score_run(folder, data)))
    write_report(folder, data)


if __name__ == "__main__":
    launch(main, MetricsConfig)
