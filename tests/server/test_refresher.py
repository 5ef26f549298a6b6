from structlog.testing import capture_logs

from server.refresher import Refresher


def test_what_cannot_be_renewed_does_not_hinder_the_others() -> None:
    def fail() -> None:
        raise ValueError("no key")

    with capture_logs() as logs:
        Refresher({"metadata": fail, "certificates": lambda: ("server",), "nothing": lambda: False}).refresh()
    assert [(event["event"], event["what"]) for event in logs] == [
        ("renewal_failed", "metadata"),
        ("renewed", "certificates"),
    ]
