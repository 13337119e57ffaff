"""Ctrl-C while cases run: the first finishes the case at hand, the second stops at once, and so does SIGTERM."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
from contextlib import suppress
from types import FrameType
from typing import Any

from profiler.units import printable

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """Takes the signals over while it is entered. In another thread than the main one nothing can, and nothing is.

    A signal that was ignored stays so: that is how a shell protects its background jobs from Ctrl-C.
    """

    def __init__(self) -> None:
        self.asked = False  # end after the case at hand
        self.at_once = False  # end now
        self._announced = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupts:
        self.wake_fd, self._ring_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)  # wakes whoever waits with select
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):  # None: not set by Python
                    self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self.wake_fd)
        os.close(self._ring_fd)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.at_once = self.at_once or self.asked or number == signal.SIGTERM
        self.asked = True
        with suppress(BlockingIOError):  # thousands of signals nobody has looked at: it rings already
            os.write(self._ring_fd, b"!")

    def wait(self, seconds: float) -> None:
        """Sleep for so long, or until a signal comes."""
        if select.select([self.wake_fd], [], [], seconds)[0]:
            os.read(self.wake_fd, 1 << 16)

    def announce(self, label: str) -> None:
        """Say once, on stderr, what the first Ctrl-C does. Not from the handler: it may have interrupted a print."""
        if self.asked and not self.at_once and not self._announced:
            self._announced = True
            text = f"interrupted: finishing {printable(label)}, then stopping. Ctrl-C again stops now."
            print(text, file=sys.stderr, flush=True)
