"""Lets tests import the helpers beside this file (`models`, `artifacts`) by name."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
