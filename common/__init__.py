"""What the stages share: seven packages over a ground of five modules, each importing downwards
only.

study/        many runs compared: which are trained, in which order, their tables and charts
inference/    a finished run applied to slices, whole volumes and new pictures; ONNX export
training/     the training loop; run folders, checkpoints, resuming, the teacher of a distillation
evaluation/   Dice to HD95, their comparison with intervals and tests, figures, the report
losses/       segmentation, reconstruction, distillation: what a training minimises
dataset/      from volumes and pictures to batches: reading, checks, slices, splits, loading
models/       U-Nets (T1, S1, S2) and TransUNet (T2)

settings      the flags that stages share
config        a dataclass as command line, printed start and config.json
device        which hardware, and in which number format
files         atomic writes, JSON, CSV, run folders
errors        the user's mistakes, told in one line

Importing `common` also settles how OpenMP's threads wait.
"""

import os
from collections.abc import MutableMapping

# How OpenMP's threads wait, if the user has said it; libgomp reads it when torch is imported.
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def settle_threads(environment: MutableMapping[str, str]) -> None:
    """Let waiting threads spin briefly before they sleep, unless the user has said otherwise.

    By default libgomp lets them spin for milliseconds. On a shared machine, or with a second
    training, that takes the core from a thread that has work to do
    (benchmarks/threads.py).
    """
    if not any(name in environment for name in WAITING):
        environment["GOMP_SPINCOUNT"] = "1000"


settle_threads(os.environ)
