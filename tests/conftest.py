"""Settings of all tests."""

from hypothesis import settings

# What is tested here does real work, whose time says nothing about a defect.
settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")
