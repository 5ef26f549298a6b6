"""Where a server keeps what unless told otherwise."""

DEFAULT_HOME = "~/.local/state/quantfleet"
