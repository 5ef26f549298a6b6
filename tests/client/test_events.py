import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from client.background import lower_priority, switch_quickly
from client.events import event_log, log_to_stderr
from client.process_memory import peak_rss_bytes, rss_bytes


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    logger = logging.getLogger("quantfleet")
    before = (logger.handlers[:], logger.level, logger.propagate)
    yield
    logger.handlers[:], logger.level, logger.propagate = before


def test_an_event_is_a_line_and_a_record_with_fields(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "quantfleet")
    event_log("update").info("target_installed", version=7, seconds=0.41234567, reason="two words", none="")
    (record,) = caplog.records
    assert record.name == "quantfleet.update"
    line = 'target_installed version=7 seconds=0.412346 reason="two words" none=""'
    assert record.getMessage() == line
    assert record.event_fields == {"version": 7, "seconds": 0.41234567, "reason": "two words", "none": ""}  # type: ignore[attr-defined]


def test_what_is_said_by_others_stays_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    log_to_stderr()
    event_log("update").warning("update_failed", error='a\nforged line="x"\x1b[31m')
    event_log("update").debug("unseen")
    shown = capsys.readouterr()
    assert shown.out == ""
    assert len(shown.err.splitlines()) == 1
    assert "\x1b" not in shown.err


def test_events_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    log_to_stderr("debug", is_json=True)
    event_log("update").debug("target_announced", version=3)
    try:
        int("surprise")
    except ValueError:
        event_log("update").exception("chore_failed", chore="x")
    first, second = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert (first["event"], first["version"], first["level"]) == ("target_announced", 3, "debug")
    assert "surprise" in second["traceback"]


def test_a_background_thread_gives_way_alone() -> None:
    found: list[int] = []

    def work() -> None:
        if lower_priority():
            found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    thread = threading.Thread(target=work)
    mine = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    thread.start()
    thread.join()
    assert all(priority > mine for priority in found)
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == mine


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="threads have priorities of their own on Linux"
)
def test_a_background_thread_of_a_nice_process_is_nicer_than_that() -> None:
    script = (
        "import os; from client.background import lower_priority; from threading import Thread, get_native_id\n"
        "def work(): lower_priority(); lower_priority(); print(os.getpriority(os.PRIO_PROCESS, get_native_id()))\n"
        "os.setpriority(os.PRIO_PROCESS, 0, 18 if %d else 9)\n"
        "thread = Thread(target=work); thread.start(); thread.join()"
    )
    found = [
        subprocess.run(
            [sys.executable, "-c", script % end], capture_output=True, text=True, check=True
        ).stdout
        for end in (0, 1)
    ]
    assert found == ["14\n", "19\n"]


def test_threads_are_switched_quickly_and_never_more_slowly() -> None:
    before = sys.getswitchinterval()
    try:
        switch_quickly()
        assert sys.getswitchinterval() <= 0.0005
        sys.setswitchinterval(0.0001)
        switch_quickly()
        assert sys.getswitchinterval() == pytest.approx(0.0001, abs=2e-6)
    finally:
        sys.setswitchinterval(before)


def test_memory_is_known_where_the_system_tells() -> None:
    assert 0 <= rss_bytes() <= peak_rss_bytes()
    assert peak_rss_bytes() > 1 << 20
