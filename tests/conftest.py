"""Settings of all tests."""

import os
import signal

from hypothesis import settings

# The workers divide the cores, for themselves and for what they start.
workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

# Every process that is started here would compile anew what no earlier one was allowed to keep compiled.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# What is tested here does real work, whose time says nothing about a defect.
settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")

# A shell starts what it runs in the background with Ctrl-C ignored, and child processes would inherit that: the tests
# that interrupt them would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)
