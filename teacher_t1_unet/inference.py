"""Segment slices with T1: masks, overlays, on request probability maps; and reconstructions.

    python inference.py                          the test patients, with the run "default"
    python inference.py --subset val --probabilities
    python inference.py --volume ct.nii.gz --output seg.nii.gz     a whole CT, or a folder of them
    python inference.py --images pictures --output masks           new 2D pictures without masks

Writes into runs/NAME: predictions/ (mask PNGs), overlays/ (CT | truth | prediction),
reconstructions/ (what T1 restores from images with a quarter of their patches hidden) and
inference.json. Then `python metrics.py`.

A CT's mask (with `--largest-component` its largest part alone) has the geometry of its file; beside
it lie a sheet of slices (.png) and the class's volume and length (.json; with `--ground-truth`
scores).
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.config import launch, option
from common.inference.predict_slices import predict
from common.inference.trained_run import open_run, ready
from common.models.unet import teacher_t1_of
from common.settings import InferenceConfig


@dataclass
class Config(InferenceConfig):
    """T1 can also reconstruct."""

    reconstructions: bool = option(True, "also write what the reconstruction decoder restores")


def main(config: Config) -> None:
    """Predict the chosen patients."""
    run = open_run(config, __file__)
    model = ready(teacher_t1_of(run.checkpoint), run, config)
    predict(model, run, config, config.reconstructions and model.reconstruction is not None)


if __name__ == "__main__":
    launch(main, Config)
