"""Ctrl-C and SIGTERM, handled between two steps of a training."""

import signal
import threading
import time


class Interruption:
    """Ctrl-C and SIGTERM, deferred to the end of the step; a second signal acts at once.

    Within a second it counts as the same one: a terminal's Ctrl-C comes from the terminal and once
    more from torchrun or reproduce.py, which forward it.

    An exception raised in a signal handler can strike anywhere, in a loader's `__del__` too, where
    Python drops it.
    """

    def __init__(self):
        self.number, self.came, self.before = None, 0.0, {}

    def __enter__(self):
        """Start deferring signals."""
        if threading.current_thread() is threading.main_thread():
            numbers = (signal.SIGINT, signal.SIGTERM)
            self.before = {number: signal.signal(number, self.note) for number in numbers}
        return self

    def __exit__(self, *_):
        """Restore the handlers that were there before."""
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def note(self, number: int, _) -> None:
        """Whether a signal has come."""
        now = time.monotonic()
        if self.number and now - self.came > 1:
            self.check()
        if not self.number:
            self.number, self.came = number, now

    def check(self) -> None:
        """KeyboardInterrupt after Ctrl-C, SystemExit(143) after SIGTERM."""
        if self.number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.number:
            raise SystemExit(143)
