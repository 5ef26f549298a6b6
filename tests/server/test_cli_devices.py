"""The commands on devices, as an operator types them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from identified_server import made_home
from typer.testing import CliRunner, Result

from quantization.enrolment_token import EnrolmentToken
from quantization.principal import Principal
from server.certificates import Issued
from server.cli_devices import app
from server.home_folder import HomeFolder
from server.identity_registry import IdentityRegistry
from server.pem import new_key
from server.registry import Registry
from server.signing_requests import public_bytes

Run = Callable[..., Result]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> HomeFolder:
    return made_home(tmp_path_factory.mktemp("cli") / "home")


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'registry.db'}"


@pytest.fixture
def run(made: HomeFolder, url: str) -> Run:
    def invoke(*arguments: str) -> Result:
        return CliRunner().invoke(app, [*arguments, "--home", str(made.path), "--registry-url", url])

    return invoke


def enrolled(made: HomeFolder, url: str, name: str = "press-7") -> Issued:
    key = new_key().public_key()

    def sign(principal: Principal) -> Issued:
        return made.pki().authority().issue(principal, key, now_seconds=registry._clock())

    with IdentityRegistry.open(url) as registry:
        token = registry.new_token(valid_seconds=60.0, actor="ana", device=name)
        return registry.enrol(token.secret, public_bytes(key).hex(), name, sign)


def test_a_token_is_printed_alone(run: Run, made: HomeFolder, url: str) -> None:
    result = run("token", "--device", "press-7")
    assert result.exit_code == 0, result.output
    token = EnrolmentToken.parse(result.stdout)
    assert result.stdout == token.text + "\n"
    assert token.fingerprint == made.pki().authority().fingerprint
    assert "may be used once, until" in result.stderr
    with IdentityRegistry.open(url) as registry:
        (record,) = registry.tokens()
    assert record.device == "press-7"
    assert record.expires_at_seconds - record.created_at_seconds == 86_400.0
    assert record.token_id in result.stderr


def test_a_token_as_json(run: Run) -> None:
    result = run("token", "--json", "--valid-hours", "1")
    fields = json.loads(result.stdout)
    assert EnrolmentToken.parse(fields["token"])
    assert fields["device"] is None
    assert fields["expires_at_seconds"] - fields["created_at_seconds"] == 3600.0


@pytest.mark.parametrize("options", [["--device", "a/b"], ["--valid-hours", "0"], ["--valid-hours", "721"]])
def test_a_token_that_cannot_be_is_refused(run: Run, options: list[str]) -> None:
    result = run("token", *options)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")


def test_a_token_needs_an_authority(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["token", "--home", str(tmp_path / "nowhere")])
    assert result.exit_code == 1
    assert "keys init" in result.stderr


def test_tokens_are_listed_without_secrets(run: Run, made: HomeFolder, url: str) -> None:
    secret = EnrolmentToken.parse(run("token").stdout).secret
    enrolled(made, url)
    for options in ([], ["--json"]):
        output = run("tokens", *options).stdout
        assert secret not in output
        assert "press-7" in output
    assert "any name" in run("tokens").stdout
    assert "used by press-7" in run("tokens").stdout


def test_devices_are_listed_and_revoked(run: Run, made: HomeFolder, url: str) -> None:
    issued = enrolled(made, url)
    assert f"press-7  enrolled  certificate {issued.serial}" in run("list").stdout
    revoked = run("revoke", "press-7", "--reason", "stolen")
    assert revoked.exit_code == 0, revoked.output
    assert "press-7  revoked" in revoked.stdout
    (device,) = json.loads(run("list", "--json").stdout)
    assert (device["name"], device["status"]) == ("press-7", "revoked")
    with Registry.open(url) as registry:
        entry = registry.audit()[-1]
    assert entry.action == "device_revoked"
    assert json.loads(entry.detail)["reason"] == "stolen"
    assert "local" in json.loads(entry.detail)["actor"]


def test_nobody_is_revoked_by_mistake(run: Run) -> None:
    result = run("revoke", "press-8")
    assert result.exit_code == 1
    assert "no device 'press-8'" in result.stderr


def test_the_key_for_flower_s_superlink_is_printed(run: Run, made: HomeFolder, url: str) -> None:
    enrolled(made, url)
    kind, _, name = run("supernode-key", "press-7").stdout.split()
    assert (kind, name) == ("ecdsa-sha2-nistp256", "press-7")


def test_names_cannot_steer_the_terminal(run: Run) -> None:
    result = run("revoke", "\x1b[31mred")
    assert "\x1b" not in result.stderr
