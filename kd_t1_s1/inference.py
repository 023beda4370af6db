"""Segment slices with the distilled S1: masks, overlays, on request probability maps.

    python inference.py                          the test patients, with the run "default"
    python inference.py --subset val --probabilities
    python inference.py --volume ct.nii.gz --output seg.nii.gz     a whole CT, or a folder of them
    python inference.py --images pictures --output masks           new 2D pictures without masks

Writes predictions/ (mask PNGs), overlays/ (CT | truth | prediction) and inference.json into
runs/NAME. Then `python metrics.py`.

A CT's mask (with `--largest-component` its largest part alone) has the geometry of its file; beside
it lie a sheet of slices (.png) and the class's volume and length (.json; with `--ground-truth`
scores).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.config import launch
from common.inference.predict_slices import predict
from common.inference.trained_run import open_run, ready
from common.models.unet import student_s1
from common.settings import InferenceConfig


def main(config: InferenceConfig) -> None:
    """Predict the chosen patients."""
    run = open_run(config, __file__)
    student = student_s1(run.num_classes, run.setting("deep"))
    predict(ready(student, run, config), run, config)


if __name__ == "__main__":
    launch(main, InferenceConfig)
