"""A marker for tests that compile C++."""

import shutil
import sys

import pytest

needs_compiler = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("g++") is None, reason="needs g++ and PyTorch's libgomp"
)
