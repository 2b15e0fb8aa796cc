"""Requests to stop: a signal sets a flag, which ends training after the step.

The set-up has nothing to save, and `KeyboardInterrupt` ends it, but only if it takes longer than `SETUP_SECONDS`: an
exception while a thread or process is being started may leave it behind, or may be swallowed.
"""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
INTERRUPTED = 130
SETUP_SECONDS = 1.0  # how long a set-up may continue after a signal before it is interrupted
UNWINDING_SECONDS = 2.0  # how long an interrupted set-up may take to clean up
NOTICE = "stopping after this step; Ctrl-C again to leave at once"

ends_with_run = False
"""Whether the process ends with the run, as `vgg` does. After a signal it then ignores further ones, and a set-up that
cannot be interrupted is ended by `os._exit`."""


class StopFlag:
    """Whether a signal has requested a stop, and which."""

    signal_name: str | None = None
    is_training = False  # whether the set-up is over and must not be interrupted
    is_last = False  # whether the process is about to end, so that further signals are ignored
    _is_interrupt_due = _was_interrupted = False

    @property
    def exit_code(self) -> int:
        """The exit code after a signal in the set-up: 128 plus its number, as in shells."""
        return 128 + signal.Signals[self.signal_name or "SIGINT"]

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The Python handler, which runs in the main thread between two instructions."""
        if self._is_interrupt_due and not self.is_training:
            self._is_interrupt_due = False
            raise KeyboardInterrupt(self.exit_code)

    def watch(self, reader: socket.socket) -> None:
        """Receive signals at once, in a thread: a Python handler would wait for a long step in C++."""
        deadline = None
        while True:
            reader.settimeout(deadline and max(0.001, deadline - time.monotonic()))
            try:
                arrived = reader.recv(1)
            except TimeoutError:
                deadline = self._interrupt_setup()
                continue
            if not arrived:
                return
            if arrived[0] not in SIGNALS:  # SIGCHLD, for instance
                continue
            name = signal.Signals(arrived[0]).name
            if name == self.signal_name == "SIGINT":
                os._exit(INTERRUPTED)
            if self.signal_name is None:
                deadline = time.monotonic() + SETUP_SECONDS
            if self.signal_name is None or name == "SIGINT":
                self.signal_name = name
                if name == "SIGINT" and self.is_training and sys.stderr is not None and sys.stderr.isatty():
                    os.write(2, f"\x1b[?25h\n{NOTICE}\n".encode())  # and show the cursor, which a live display hides

    def _interrupt_setup(self) -> float | None:
        """Interrupt the set-up, or exit if that has failed; return the next deadline."""
        if self.is_training:
            return None
        if self._was_interrupted and ends_with_run:
            os._exit(self.exit_code)
        self._was_interrupted = self._is_interrupt_due = True
        # Interrupts a blocking system call of the main thread; it also arrives here, without effect.
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
        return time.monotonic() + UNWINDING_SECONDS


_active: StopFlag | None = None


@contextmanager
def signals_handled() -> Iterator[StopFlag]:
    """Handle SIGINT, SIGTERM and SIGUSR1.

    A second SIGINT (Ctrl-C) ends the process at once, with code 130. A nested call yields the same flag. Outside the
    main thread, where signals cannot be handled, the flag stays unset.
    """
    global _active
    if _active is not None or threading.current_thread() is not threading.main_thread():
        yield _active or StopFlag()
        return
    flag = _active = StopFlag()
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    old_wakeup_fd = signal.set_wakeup_fd(writer.fileno())
    old_handlers: dict[int, Any] = {number: signal.signal(number, flag.handle) for number in SIGNALS}
    watcher = threading.Thread(target=flag.watch, args=(reader,), daemon=True)
    watcher.start()
    try:
        yield flag
    finally:
        flag.is_training = True  # no more interrupts
        is_last = flag.is_last or (ends_with_run and flag.signal_name is not None)
        for number, handler in old_handlers.items():
            signal.signal(number, signal.SIG_IGN if is_last else handler)
        signal.set_wakeup_fd(old_wakeup_fd)
        writer.shutdown(socket.SHUT_WR)  # closing is not enough if a forked process has a copy
        writer.close()
        watcher.join()
        reader.close()
        _active = None
