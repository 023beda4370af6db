"""What the stages share. Modules import only from those before them.

files -> config -> settings -> arms -> organs -> formats -> geometry -> volumes -> processes ->
cases -> doubts -> layouts -> views -> phantom -> slices -> splits -> pictures -> masks ->
mask_doubts -> picture_folders -> user_tables -> patients -> pairs -> loading -> device -> unet ->
transunet -> losses -> contrast -> maps -> surfaces -> scores -> scoring -> measures -> distillation
-> checkpoint -> intervals -> statistics -> tables -> mistakes -> embedding -> figures -> report ->
charts -> study -> interruption -> runs -> resume -> engine -> teachers -> trained -> reconstruction
-> jobs -> segment -> true_masks -> picture_jobs -> new_pictures -> export -> predict -> steps ->
plan
"""

import os
from collections.abc import MutableMapping

# How OpenMP's threads wait, if the user has said it; libgomp reads it when torch is imported.
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def settle_threads(environment: MutableMapping[str, str]) -> None:
    """Let waiting threads spin briefly before they sleep, unless the user has said otherwise.

    Left to itself libgomp lets them spin for milliseconds: beside other work, which shared machines
    and a second training are, that takes the core from whoever has something to do
    (benchmarks/threads.py).
    """
    if not any(name in environment for name in WAITING):
        environment["GOMP_SPINCOUNT"] = "1000"


settle_threads(os.environ)
