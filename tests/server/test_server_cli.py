"""The commands of operators, on a real server in this process."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_paths import unexpanded_paths
from click.testing import Result
from shop import CLASS, Shop, make_shop, served
from typer.testing import CliRunner

from quantization.arrays import FloatArray
from server import cli_rollout
from server.cli import app

Run = Callable[..., Result]


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    made = make_shop(tmp_path)
    yield made
    made.stores.engine.dispose()


@pytest.fixture
def run(shop: Shop) -> Iterator[Run]:
    """Return a function that runs a command against the shop's server, as an operator on its host."""
    with served(shop.settings) as addresses:

        def invoke(*arguments: str) -> Result:
            where = ("--home", str(shop.settings.home), "--server", addresses.address, "--insecure")
            return CliRunner().invoke(app, [*arguments, *where])

        yield invoke


def answer(result: Result) -> Any:
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_an_operator_publishes_watches_and_takes_back(shop: Shop, run: Run) -> None:
    first = answer(run("publish", shop.manifests[0], "--reason", "first", "--json"))
    assert (first["version"], first["phase"], first["rollout_id"]) == (1, "complete", "")
    opened = answer(run("publish", shop.manifests[1], "--json"))
    assert (opened["version"], opened["base_version"], opened["phase"]) == (2, 1, "canary")
    name = opened["rollout_id"]
    assert opened.pop("was_published") is False
    assert answer(run("status", "--json"))["targets"][0]["rollout"] == opened
    assert answer(run("publish", shop.manifests[1], "--json")) == {**opened, "was_published": True}
    assert answer(run("rollout", "list", "--json")) == [opened]
    assert answer(run("rollout", "pause", name, "--reason", "lunch", "--json"))["phase"] == "paused"
    assert answer(run("rollout", "resume", name, "--json"))["phase"] == "canary"
    assert answer(run("rollout", "promote", name, "--json"))["share_ratio"] == 1.0
    assert answer(run("rollout", "rollback", name, "--json"))["rolled_back_version"] == 3
    shown = answer(run("rollout", "show", name, "--json"))
    assert [event["action"] for event in shown["events"]] == [
        "rollout_started", "paused", "canary_resumed", "promoted", "recalled",
    ]  # fmt: skip
    assert {row["verdict"] for row in shown["evidence"]} == {"undecided"}
    assert answer(run("rollout", "list", "--open", "--json")) == []


def test_tables_are_for_people(shop: Shop, run: Run) -> None:
    assert "nothing is published yet" in run("status").stdout
    assert "no rollouts" in run("rollout", "list").stdout
    assert "already" not in run("publish", shop.manifests[0]).stderr
    assert "published already; nothing was changed" in run("publish", shop.manifests[0]).stderr
    name = answer(run("publish", shop.manifests[1], "--reason", "fewer bits", "--json"))["rollout_id"]
    status = run("status")
    assert status.exit_code == 0
    assert all(word in status.stdout for word in ("camera", CLASS, name, "canary v2"))
    shown = run("rollout", "show", name).stdout
    assert all(word in shown for word in ("accuracy", "undecided", "rollout_started", shop.manifests[1]))
    assert "\x1b" not in shown + run("rollout", "list").stdout
    back = run("rollout", "rollback", name)
    assert "rolled_back" in back.stdout
    assert "as version 3" in back.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["rollout", "show", "nobody"], 1, "no rollout 'nobody'"),
        (["publish", "ab" * 32], 1, "not in the blob store"),
        (["publish", "ab"], 2, "digest"),
        (["rollout", "rollback"], 2, "ROLLOUT"),
        (["rollout", "rollback", "x", "--offline", "/nowhere"], 2, "no folder"),
        (["status", "--nonsense"], 2, "nonsense"),
    ],
)
def test_what_is_refused_is_one_line_and_an_exit_code(
    run: Run, arguments: list[str], status: int, said: str
) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (status, "")
    assert said in result.stderr


def test_what_is_open_refuses_another(shop: Shop, run: Run) -> None:
    run("publish", shop.manifests[0])
    run("publish", shop.manifests[1])
    result = run("publish", shop.manifests[2])
    assert result.exit_code == 1
    assert "promote it or roll it back first" in result.stderr


def test_a_server_that_is_not_there_is_said(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["status", "--server", "127.0.0.1:1", "--insecure"])
    assert result.exit_code == 1
    assert "no server answers at 127.0.0.1:1" in result.stderr
    result = CliRunner().invoke(app, ["status", "--home", str(tmp_path)])
    assert result.exit_code == 1
    assert "operator.key is missing" in result.stderr
    result = CliRunner().invoke(app, ["status", "--server", "192.0.2.1:9", "--insecure"])
    assert (result.exit_code, "loopback" in result.stderr) == (2, True)


def test_status_is_watched_until_interrupted(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    rests = iter([None, None, KeyboardInterrupt()])

    def sleep(_seconds: float) -> None:
        rest = next(rests)
        if rest is not None:
            raise rest

    monkeypatch.setattr("server.cli.time.sleep", sleep)
    result = run("status", "--watch", "--json")
    assert (result.exit_code, len(result.stdout.splitlines())) == (130, 3)
    rests = iter([KeyboardInterrupt()])
    assert run("status", "--watch").exit_code == 130


def test_a_secure_server_wants_the_operators_certificate(tmp_path: Path) -> None:
    shop = make_shop(tmp_path, is_insecure=False)
    with served(shop.settings) as addresses:

        def run(*arguments: str) -> Result:
            return CliRunner().invoke(app, [*arguments, "--server", addresses.address])

        home = ("--home", str(tmp_path))
        assert answer(run("publish", shop.manifests[0], *home, "--json"))["version"] == 1
        assert answer(run("publish", shop.manifests[1], *home, "--json"))["version"] == 2
        operator = (
            "--operator",
            str(tmp_path / "pki/operators/admin"),
            "--home",
            str(tmp_path / "elsewhere"),
        )
        name = answer(run("rollout", "list", *operator, "--json"))[0]["rollout_id"]
        assert run("rollout", "promote", name, *operator).exit_code == 0
        unsigned = run("publish", shop.manifests[2], *operator)
        assert unsigned.exit_code == 1
        assert "--offline" in unsigned.stderr
        signed = run("publish", shop.manifests[2], *operator, "--offline", str(tmp_path / "keys/offline"))
        assert signed.exit_code == 0, signed.stderr
        stranger = run("status", "--insecure")
        assert stranger.exit_code == 1
        assert "certificates" in stranger.stderr
    shop.stores.engine.dispose()


def prepare(home: Path, model: Path, data: Path, *more: str) -> Result:
    arguments = ["prepare", "--home", str(home), "--model", str(model), "--data", str(data), *more]
    return CliRunner().invoke(app, [*arguments, "--json"])


def test_an_operator_brings_a_model(tmp_path: Path, tiny_model: bytes, lab_inputs: FloatArray) -> None:
    model, data = tmp_path / "tiny.onnx", tmp_path / "lab.npz"
    model.write_bytes(tiny_model)
    np.savez(data, x=lab_inputs, y=np.zeros(len(lab_inputs)))
    classes = ("--device-class", "arm", "--device-class", "x86")
    first = prepare(tmp_path, model, data, *classes)
    assert [one["device_class"] for one in answer(first)] == ["arm", "x86"]
    assert {one["model_name"] for one in answer(first)} == {"tiny"}
    assert {one["generation"] for one in answer(first)} == {0}
    assert answer(prepare(tmp_path, model, data, *classes)) == answer(first)
    np.save(tmp_path / "lab.npy", lab_inputs)
    again = prepare(
        tmp_path, model, tmp_path / "lab.npy", "--device-class", "toaster", "--max-weight-bits", "6"
    )
    assert answer(again)[0]["device_class"] == "toaster"
    other = prepare(tmp_path, model, data, "--device-class", "toaster", "--max-weight-bits", "5")
    assert (other.exit_code, "registered with max_weight_bits 6, not 5" in other.stderr) == (2, True)


def test_whoever_has_prepared_a_model_is_told_what_comes_next(
    tmp_path: Path, tiny_model: bytes, lab_inputs: FloatArray
) -> None:
    model, data = tmp_path / "tiny.onnx", tmp_path / "lab.npz"
    model.write_bytes(tiny_model)
    np.savez(data, x=lab_inputs)
    arguments = ("--home", str(tmp_path / "home"), "--model", str(model), "--data", str(data))
    said = CliRunner().invoke(app, ["prepare", *arguments, "--device-class", "arm"])
    (made,) = answer(prepare(tmp_path, model, data, "--device-class", "arm"))
    assert f"model digest: {made['model_digest']}\n" in said.stdout
    assert f"quantfleet-server publish {made['manifest_digest']}\n" in said.stderr
    assert f"--device-class arm --model-digest {made['model_digest']}\n" in said.stderr


def test_models_and_inputs_that_cannot_be_used_are_said(
    tmp_path: Path, tiny_model: bytes, lab_inputs: FloatArray
) -> None:
    model, data = tmp_path / "tiny.onnx", tmp_path / "lab.npz"
    model.write_bytes(tiny_model)
    arm = ("--device-class", "arm")

    def said(*, arrays: dict[str, Any] | None = None, path: Path = data, at: Path = model) -> str:
        if arrays is not None:
            np.savez(data, **arrays)
        result = prepare(tmp_path, at, path, *arm)
        assert (result.exit_code, result.stdout) == (2, "")
        return result.stderr

    assert "has no array 'x', only: z" in said(arrays={"z": lab_inputs})
    assert "must be numbers" in said(arrays={"x": np.array(["a"])})
    assert "cannot be read" in said(arrays={"x": np.array([{}], dtype=object)})
    assert "lab inputs have shape" in said(arrays={"x": lab_inputs[:, :, :4]})
    assert "must be rows" in said(arrays={"x": np.float32(1)})
    assert "cannot be read" in said(path=tmp_path / "none.npz")
    data.write_bytes(b"PK\3\4 nothing")
    assert "cannot be read" in said()
    assert "cannot be read" in said(at=tmp_path / "none.onnx")
    np.savez(data, x=lab_inputs)
    model.write_bytes(b"nothing")
    assert str(model) in said()


def test_every_command_has_a_help_that_names_its_options() -> None:
    for command in ([], ["serve"], ["status"], ["publish"], ["prepare"], ["tune"], ["keys"], ["devices"]):
        assert CliRunner().invoke(app, [*command, "--help"]).exit_code == 0
    for command in cli_rollout.app.registered_commands:
        name = command.name or getattr(command.callback, "__name__", "")
        shown = CliRunner().invoke(app, ["rollout", name, "--help"])
        assert shown.exit_code == 0
        assert all(option in shown.stdout for option in ("--server", "--operator", "--insecure", "--json"))
    assert "quantfleet-server" in CliRunner().invoke(app, ["--version"]).stdout


def test_every_path_may_begin_at_home() -> None:
    assert unexpanded_paths(app) == []
