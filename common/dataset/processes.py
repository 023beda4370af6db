"""One piece of work for many cases, in several processes."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from tqdm import tqdm

from common.config import OF_THE_MACHINE
from common.errors import UserError, bullets


def run_all(work, cases: Sequence, workers: int, title: str) -> list:
    """`work(case)` for every case in `workers` processes, in order; memory: one case per process.

    What fails in one case does not stop the others: UserError names all bad cases, at the end. A
    full disk, which affects all, does. Interrupted, it ends with the cases that are under way;
    killed, they end with it.
    """
    results, problems = [], []
    pool = ProcessPoolExecutor(max(1, min(workers, len(cases))), initializer=_leave_to_parent)
    try:
        futures = [pool.submit(work, case) for case in cases]
        pairs = tqdm(zip(cases, futures, strict=True), title, len(cases), disable=None, leave=False)
        for case, future in pairs:
            try:
                results.append(future.result())
            except BrokenProcessPool:
                raise
            except UserError as error:
                problems.append(str(error))
            except Exception as error:  # whatever a library raises for an unforeseen file
                if getattr(error, "errno", None) in OF_THE_MACHINE:
                    raise
                problems.append(f"{getattr(case, 'name', case)}: {unforeseen(error)}")
    except BrokenProcessPool:  # raised by whichever is called next: `submit` or `result`
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


def unforeseen(error: Exception) -> str:
    """An unforeseen error in one line: its type and its text, if any."""
    text = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _leave_to_parent() -> None:
    """Ctrl-C reaches every process of a terminal, a queue's SIGTERM every one of a job; the parent
    alone decides what they mean. A worker that ended while it takes its next case would leave half
    a message for the others.

    A worker whose parent is gone, with its lock on the folder, must not write alongside the next
    one.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Wait until the parent ends, for whatever reason; then end at once, even in the middle of a
    case."""
    multiprocessing.parent_process().join()
    os._exit(1)
