"""Score the distilled S1, and its gain over the plain S1 and its gap to the teacher.

    python metrics.py
    python metrics.py --name bottleneck-image --plain ../student_s1/runs/default/summary.json

Prints the table; writes metrics_per_case.csv, summary.json and report.html, a page that shows it
all, into runs/NAME. Gain and gap are paired by patient; both other models must have been scored on
the same patients.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.config import launch, option
from common.evaluation.comparison import compare, reference
from common.evaluation.report import write_report
from common.evaluation.score_run import data_of, score_run, table
from common.settings import MetricsConfig


@dataclass
class Config(MetricsConfig):
    """What to compare with."""

    plain: Path | None = option(
        None, 'the plain S1\'s summary.json (default: of the run of this name, else of "default")'
    )
    teacher: Path | None = option(None, "T2's summary.json (default: the teacher of this run)")


def main(config: Config) -> None:
    """Score the run and compare it."""
    folder = Path(__file__).resolve().parent / "runs" / config.name
    data = data_of(folder, config.data)
    result = score_run(folder, data)
    plain = config.plain or reference(folder, "student_s1")
    teacher = config.teacher or reference(folder, "teacher_t2_transunet")
    compared = (
        compare(result, "gain over plain S1", plain, "student_s1", folder),
        compare(result, "against T2", teacher, "teacher_t2_transunet"),
    )
    print(table(result), *compared, sep="\n")
    write_report(folder, data, compared)


if __name__ == "__main__":
    launch(main, Config)
