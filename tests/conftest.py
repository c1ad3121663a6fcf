"""Settings of all tests."""

import signal

from hypothesis import settings

# What is tested here does real work, whose time says nothing about a defect.
settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")

# A shell starts what it runs in the background with Ctrl-C ignored, and child processes would inherit that: the tests
# that interrupt them would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)
