"""Asked to stop: a signal sets a flag, and the run ends where nothing is lost."""

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
INTERRUPTED = 130


class StopFlag:
    """Whether a signal has asked for the end, and which."""

    signal_name: str | None = None
    is_last = False
    """Whether the process ends now: signals that still come, as Linux sends several for one parent, change nothing."""


@contextmanager
def stop_on_signals(notice: str) -> Iterator[StopFlag]:
    """Let SIGINT, SIGTERM and SIGUSR1 set a flag; a second SIGINT (Ctrl-C) ends the process at once, with code 130.

    Outside the main thread, where signals cannot be had, the flag stays unset.

    Args:
        notice: what the first SIGINT writes to stderr, if that is a terminal.
    """
    flag = StopFlag()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return

    def watch() -> None:
        # In a thread of its own: a handler in Python would wait for the end of a long step in C++.
        while arrived := reader.recv(1):
            if arrived[0] not in SIGNALS:  # every signal with a handler comes here, a child's end too
                continue
            name = signal.Signals(arrived[0]).name
            if name == "SIGINT" and flag.signal_name == "SIGINT":
                os._exit(INTERRUPTED)
            flag.signal_name = name
            if name == "SIGINT" and sys.stderr is not None and sys.stderr.isatty():
                os.write(2, f"\x1b[?25h\n{notice}\n".encode())  # with the cursor, which a live display hides

    reader, writer = socket.socketpair()
    writer.setblocking(False)
    before_fd = signal.set_wakeup_fd(writer.fileno())
    before: dict[int, Any] = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if flag.is_last else handler)
        signal.set_wakeup_fd(before_fd)
        writer.shutdown(socket.SHUT_WR)  # closing is not enough: a forked worker has a copy of it
        writer.close()
        watcher.join()
        reader.close()
