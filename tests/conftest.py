"""Settings that all tests share."""

from hypothesis import settings

# A shared machine may stop a process for longer than any deadline: tests do not time.
settings.register_profile("quantfleet", deadline=None, max_examples=60)
settings.load_profile("quantfleet")
