"""What holds for all tests."""

import signal

# A shell's background jobs ignore these, and so would every program that a test starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)
for number in (signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM):
    signal.signal(number, signal.SIG_DFL)
