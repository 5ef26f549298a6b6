import sys

import pytest

from simulation.logs import configure_logs
from simulation.progress import show_progress


def test_nothing_is_shown_where_stderr_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with show_progress(is_verbose=False) as on_progress:
        on_progress(0.5, "half")
    assert capsys.readouterr() == ("", "")


def test_verbose_progress_is_logged_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(is_verbose=True)
    with show_progress(is_verbose=True) as on_progress:
        on_progress(0.5, "half\x1b[2J")
    out, err = capsys.readouterr()
    assert out == ""
    assert "phase_started" in err
    assert "0.5" in err
    assert "\x1b[2J" not in err


def test_terminal_shows_a_bar_and_results_stay_alone_on_stdout(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    with show_progress(is_verbose=False) as on_progress:
        on_progress(0.25, "asking [bold]devices[/bold]")
    out, err = capsys.readouterr()
    assert out == ""
    assert "asking [bold]devices[/bold]" in err
    assert "25%" in err
