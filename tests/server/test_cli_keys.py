"""The commands on keys and certificates, as an operator types them."""

import json
import stat
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from quantization.principal import Principal, Role
from server.cli_keys import app
from server.home_folder import HomeFolder
from server.identity_registry import IdentityRegistry
from server.key_report import KeyLine
from server.operator_credentials import OperatorCredentials
from server.pem import hosts_of, serial_of

DAY = 86_400.0


def run(home: Path, *arguments: str, environment: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(app, [arguments[0], "--home", str(home), *arguments[1:]], env=environment)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    result = run(tmp_path / "home", "init", "--host", "fleet.example.org", "--host", "10.0.0.7")
    assert result.exit_code == 0, result.output
    return tmp_path / "home"


def shown(home: Path) -> dict[str, KeyLine]:
    result = run(home, "show", "--json")
    assert result.exit_code == 0, result.output
    return {line["name"]: KeyLine(**line) for line in json.loads(result.stdout)}


def test_init_makes_all_that_a_server_needs(home: Path) -> None:
    folder = HomeFolder(home)
    assert folder.metadata.read("timestamp")
    assert hosts_of(folder.pki().server_certificate()) == ("fleet.example.org", "10.0.0.7")
    assert OperatorCredentials.read(folder.pki().operator_folder("admin")).name == "admin"
    assert set(shown(home)) == {
        "root",
        "targets",
        "snapshot",
        "timestamp",
        "authority",
        "server",
        "operator admin",
    }
    private = [path for path in home.rglob("*") if path.suffix in (".key", ".pem")]
    assert len(private) == 7
    assert {stat.S_IMODE(path.stat().st_mode) for path in private} == {0o600}


def test_a_home_with_a_tilde_is_the_user_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    made = CliRunner().invoke(app, ["init", "--home=~/fleet", "--host", "a.b"])
    assert made.exit_code == 0, made.output
    assert (tmp_path / "fleet" / "pki" / "ca.crt").exists()


def test_init_a_second_time_is_refused_and_changes_nothing(home: Path) -> None:
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    result = run(home, "init")
    assert result.exit_code == 2
    assert "has keys and certificates already" in result.stderr
    assert {path: path.read_bytes() for path in home.rglob("*") if path.is_file()} == before


def test_init_that_was_cut_off_is_finished(home: Path) -> None:
    pki = HomeFolder(home).pki()
    fingerprint = pki.authority().fingerprint
    (pki.path / "server.crt").unlink()
    pki.remove_operator("admin")
    result = run(home, "init", "--host", "a.b")
    assert result.exit_code == 0, result.output
    assert pki.authority().fingerprint == fingerprint
    assert hosts_of(pki.server_certificate()) == ("a.b",)
    assert pki.operators() == ("admin",)


def test_offline_keys_may_lie_elsewhere_and_be_encrypted(tmp_path: Path) -> None:
    home, offline = tmp_path / "home", tmp_path / "stick"
    secret = {"QUANTFLEET_PASSPHRASE": "correct horse"}
    assert run(home, "init", "--offline", str(offline), environment=secret).exit_code == 0
    assert {path.name.split(".")[0] for path in offline.iterdir()} == {"root", "targets"}
    assert not (home / "keys" / "offline").exists()
    assert all(b"ENCRYPTED" in path.read_bytes() for path in offline.iterdir())
    refused = run(home, "rotate", "targets", "--offline", str(offline))
    assert refused.exit_code == 2
    assert "another passphrase" in refused.stderr
    assert run(home, "rotate", "targets", "--offline", str(offline), environment=secret).exit_code == 0


def test_without_a_host_the_machine_s_own_are_taken(tmp_path: Path) -> None:
    assert run(tmp_path / "home", "init").exit_code == 0
    assert {"localhost", "127.0.0.1", "::1"} <= set(
        hosts_of(HomeFolder(tmp_path / "home").pki().server_certificate())
    )


def test_rotate_gives_a_role_new_keys(home: Path) -> None:
    before = shown(home)
    result = run(home, "rotate", "snapshot", "--keys", "2")
    assert result.exit_code == 0, result.output
    after = shown(home)
    assert after["root"].detail.startswith("version 2")
    assert "2 of 2 keys" in after["snapshot"].detail
    assert after["snapshot"].detail != before["snapshot"].detail
    assert run(home, "rotate", "king").exit_code == 2


def test_refresh_renews_what_is_due_alone(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(home, "refresh").stdout == "nothing is due\n"
    later = time.time() + 300 * DAY
    monkeypatch.setattr("server.cli_keys.time.time", lambda: later)
    lines = run(home, "refresh").stdout.splitlines()
    assert lines == ["quantfleet://server/server", "quantfleet://operator/admin", "snapshot and timestamp"]
    assert run(home, "refresh").stdout == "nothing is due\n"
    assert shown(home)["server"].expires_at_seconds > later + 390 * DAY


def test_show_says_when_things_end(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    monkeypatch.setattr("server.cli_keys.time.time", lambda: now + 2 * DAY)
    output = run(home, "show").stdout
    (timestamp,) = [line for line in output.splitlines() if "timestamp" in line]
    assert "EXPIRED" in timestamp
    assert HomeFolder(home).pki().authority().fingerprint in output


def test_a_server_certificate_for_other_hosts(home: Path) -> None:
    result = run(home, "server", "--host", "other.example.org")
    assert result.exit_code == 0, result.output
    assert hosts_of(HomeFolder(home).pki().server_certificate()) == ("other.example.org",)
    assert run(home, "server", "--host", "no host").exit_code == 2


def test_an_operator_comes_and_goes(home: Path) -> None:
    made = run(home, "operator", "ana")
    folder = HomeFolder(home).pki().operator_folder("ana")
    assert made.stdout.strip() == str(folder)
    assert run(home, "operator", "ana").exit_code == 2
    serial = serial_of(HomeFolder(home).pki().operator_certificate("ana"))
    revoked = run(home, "revoke", "ana", "--reason", "left")
    assert revoked.exit_code == 0, revoked.output
    assert serial in revoked.stdout
    assert not folder.exists()
    with IdentityRegistry.open(f"sqlite:///{home / 'registry.db'}") as registry:
        assert registry.revoked().holds(serial, Principal(Role.OPERATOR, "ana").uri)
    assert run(home, "operator", "ana").exit_code == 0
    assert serial_of(HomeFolder(home).pki().operator_certificate("ana")) != serial


def test_whoever_is_revoked_is_refused_with_the_certificate_from_before_a_renewal_too(home: Path) -> None:
    pki = HomeFolder(home).pki()
    pki.issue_operator("ana", now_seconds=time.time() - 300 * DAY)
    carried = serial_of(pki.operator_certificate("ana"))  # what is where ana works
    pki.refresh(now_seconds=time.time())
    here = serial_of(pki.operator_certificate("ana"))
    assert run(home, "revoke", "ana").exit_code == 0
    with IdentityRegistry.open(f"sqlite:///{home / 'registry.db'}") as registry:
        assert registry.revoked().serials == {carried, here}
    assert carried != here


def test_an_operator_whose_folder_is_gone_is_revoked_by_number(home: Path) -> None:
    assert run(home, "revoke", "ana").exit_code == 1
    assert run(home, "revoke", "ana", "--serial", "xyz").exit_code == 2
    assert run(home, "revoke", "ana", "--serial", "0A:1b").exit_code == 0
    with IdentityRegistry.open(f"sqlite:///{home / 'registry.db'}") as registry:
        assert registry.revoked().serials == {"a1b"}


def test_what_was_never_made_says_how(tmp_path: Path) -> None:
    for command in (["show"], ["refresh"], ["operator", "ana"], ["rotate", "root"]):
        result = run(tmp_path / "home", *command)
        assert result.exit_code == 1, command
        assert result.stderr.startswith("error: ")
    assert "keys init" in run(tmp_path / "home", "show").stderr


def test_damaged_metadata_is_a_clear_error(home: Path) -> None:
    (home / "metadata" / "1.targets.json").write_bytes(b"{")
    result = run(home, "show")
    assert result.exit_code == 2
    assert "targets" in result.stderr
    assert "is damaged" in result.stderr


def test_lifetimes_come_from_the_home_folder_s_settings(tmp_path: Path) -> None:
    (tmp_path / "server.toml").write_text("[certificates]\nserver = 10\n")
    assert run(tmp_path, "init", "--host", "a.b").exit_code == 0
    end = shown(tmp_path)["server"].expires_at_seconds
    assert 9 * DAY < end - time.time() <= 10 * DAY
