"""Runs an agent in this process until it is killed: python agent_process.py STATE_FOLDER ADDRESS."""

import sys
import time
from pathlib import Path

from agents import SETTINGS

from client.api import Device
from client.connection import ServiceChoice

if __name__ == "__main__":
    choice = ServiceChoice(sys.argv[2], "device-1", is_insecure=True)
    with Device.open(Path(sys.argv[1]), settings=SETTINGS, service=choice):
        print("started", flush=True)  # noqa: T201  # the test waits for it
        time.sleep(600)
