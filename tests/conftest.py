"""What all tests share."""

import signal
import threading


def pytest_configure():
    """Interrupts are tested, and a shell that starts a job in the background lets it ignore them."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
