"""One piece of work for many cases, in several processes."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from tqdm import tqdm

from common.files import UserError, bullets


def run_all(work, cases: Sequence, workers: int, title: str) -> list:
    """`work(case)` for every case in `workers` processes, in order; memory: one case per process.

    UserErrors do not stop the others: they are raised as one, naming all bad cases, at the end.
    Interrupted, it ends with the cases that are under way; killed, they end with it.
    """
    results, problems = [], []
    pool = ProcessPoolExecutor(max(1, min(workers, len(cases))), initializer=_leave_to_parent)
    try:
        futures = [pool.submit(work, case) for case in cases]
        for future in tqdm(futures, desc=title, disable=None, leave=False):
            try:
                results.append(future.result())
            except UserError as error:
                problems.append(str(error))
    except BrokenProcessPool:  # met by whoever asks next: `submit` or `result`
        raise UserError(
            "A worker process was ended from outside, most likely for want of memory. "
            "Try --workers 1; what is finished is kept."
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)
    if problems:
        raise UserError(
            f"{len(problems)} of {len(cases)} cases cannot be used:{bullets(problems, 200)}"
        )
    return results


def _leave_to_parent() -> None:
    """Ctrl-C reaches every process of a terminal; the parent alone decides what it means.

    A worker whose parent is gone, with its lock on the folder, must not write beside the next one.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Wait for the parent's end, however it comes; then end at once, in the middle of a case."""
    multiprocessing.parent_process().join()
    os._exit(1)
