"""Requests to stop: a signal sets a flag, and the run ends where nothing is lost.

During training that is after the step. During the set-up there is nothing to save, and `KeyboardInterrupt` ends it,
but only if it takes longer than `SETUP_SECONDS`: an exception that arrives while a thread or a process is being started
may leave it behind, or may be swallowed by whatever runs then.
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
SETUP_SECONDS = 1.0
"""How long a set-up may go on after a signal before it is interrupted."""
UNWINDING_SECONDS = 2.0
"""How long an interrupted set-up may take to end, for instance to remove temporary files."""
NOTICE = "stopping after this step; Ctrl-C again to leave at once"

ends_with_run = False
"""Whether the process ends with the run, as the program `vgg` does. After a signal it then ignores further ones, until
it has ended, and a set-up that cannot be interrupted is left by `os._exit`."""


class StopFlag:
    """Whether a signal has asked for the end, and which."""

    signal_name: str | None = None
    is_training = False
    """Whether the set-up is over, so that nothing is interrupted any more."""
    is_last = False
    """Whether the process ends now: further signals, of which Linux sends several for one parent, change nothing."""
    _is_interrupt_due = _was_interrupted = False

    @property
    def exit_code(self) -> int:
        """The exit code after a signal in the set-up: 128 and the signal's number, as shells have it."""
        return 128 + signal.Signals[self.signal_name or "SIGINT"]

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Python's handler, which runs in the main thread between two instructions."""
        if self._is_interrupt_due and not self.is_training:
            self._is_interrupt_due = False
            raise KeyboardInterrupt(self.exit_code)

    def watch(self, arriving: socket.socket) -> None:
        """Note signals as they arrive, in a thread: a handler in Python would wait for a long step in C++ to end."""
        deadline = None
        while True:
            arriving.settimeout(deadline and max(0.001, deadline - time.monotonic()))
            try:
                arrived = arriving.recv(1)
            except TimeoutError:
                deadline = self._interrupted()
                continue
            if not arrived:
                return
            if arrived[0] not in SIGNALS:  # every signal with a handler comes here, a child's end too
                continue
            name = signal.Signals(arrived[0]).name
            if name == self.signal_name == "SIGINT":
                os._exit(INTERRUPTED)
            if self.signal_name is None:
                deadline = time.monotonic() + SETUP_SECONDS
            if self.signal_name is None or name == "SIGINT":
                self.signal_name = name
                if name == "SIGINT" and self.is_training and sys.stderr is not None and sys.stderr.isatty():
                    os.write(2, f"\x1b[?25h\n{NOTICE}\n".encode())  # with the cursor, which a live display hides

    def _interrupted(self) -> float | None:
        """Interrupt the set-up, or leave it if that has not helped; return when to look again."""
        if self.is_training:
            return None
        if self._was_interrupted and ends_with_run:
            os._exit(self.exit_code)
        self._was_interrupted = self._is_interrupt_due = True
        # Sent to the main thread, it ends a system call that waits there; it also arrives here, and changes nothing.
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
        return time.monotonic() + UNWINDING_SECONDS


_active: StopFlag | None = None


@contextmanager
def signals_handled() -> Iterator[StopFlag]:
    """Handle SIGINT, SIGTERM and SIGUSR1, from before anything is started until everything has ended.

    A second SIGINT (Ctrl-C) ends the process at once, with code 130. A call within another one yields its flag. Outside
    the main thread, where signals cannot be handled, the flag stays unset.
    """
    global _active
    if _active is not None or threading.current_thread() is not threading.main_thread():
        yield _active or StopFlag()
        return
    flag = _active = StopFlag()
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    before_fd = signal.set_wakeup_fd(writer.fileno())
    before: dict[int, Any] = {number: signal.signal(number, flag.handle) for number in SIGNALS}
    watcher = threading.Thread(target=flag.watch, args=(reader,), daemon=True)
    watcher.start()
    try:
        yield flag
    finally:
        flag.is_training = True  # nothing is interrupted any more
        is_last = flag.is_last or (ends_with_run and flag.signal_name is not None)
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if is_last else handler)
        signal.set_wakeup_fd(before_fd)
        writer.shutdown(socket.SHUT_WR)  # closing is not enough: a forked process has a copy of it
        writer.close()
        watcher.join()
        reader.close()
        _active = None
