"""For all tests: Ctrl-C means what it means on a terminal."""

from __future__ import annotations

import signal

# A shell that starts the tests in the background makes them, and every program that they start, deaf to Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
