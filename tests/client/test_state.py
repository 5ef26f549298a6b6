import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from artifacts import example

from client.folder_lock import Access
from client.runtime import Runtime
from client.state import StateFolder
from quantization.artifact import Artifact
from quantization.blob import content_digest, encode_blob
from quantization.errors import ConfigurationError, DigestMismatchError, MalformedError, NotFoundError

CONTENT = b"some content"
DIGEST, STORED = content_digest(CONTENT), encode_blob(CONTENT)


def install_blobs(state: StateFolder, artifact: Artifact) -> None:
    for digest, stored in artifact.blobs.items():
        state.store_blob(digest, stored)


def install(state: StateFolder, artifact: Artifact) -> None:
    install_blobs(state, artifact)
    state.write_manifest(artifact.manifest)


def test_what_is_stored_is_there_after_a_restart(tmp_path: Path) -> None:
    artifact = example().artifact()
    with StateFolder(tmp_path / "state") as state:
        assert (state.read_manifest(), state.read_samples(), state.digests()) == (None, None, frozenset())
        install(state, artifact)
        state.write_samples(b"samples")
    with StateFolder(tmp_path / "state") as state:
        assert state.read_manifest() == artifact.manifest
        assert state.digests() == artifact.blobs.keys() | {artifact.manifest.digest()}
        assert state.read_samples() == b"samples"
        x = example().inputs(2)
        wanted = Runtime(artifact.manifest, artifact.blobs.__getitem__).infer(x)
        assert (Runtime(artifact.manifest, state.read_blob).infer(x) == wanted).all()


def test_blobs_come_back_as_they_were_stored(tmp_path: Path) -> None:
    with StateFolder(tmp_path) as state:
        assert not state.has_blob(DIGEST)
        state.store_blob(DIGEST, STORED)
        state.store_blob(DIGEST, STORED)
        assert state.has_blob(DIGEST)
        assert state.read_blob(DIGEST) == STORED


def test_content_that_is_not_what_its_name_says_is_not_stored(tmp_path: Path) -> None:
    with StateFolder(tmp_path) as state:
        with pytest.raises(DigestMismatchError):
            state.store_blob(DIGEST, encode_blob(b"other content"))
        with pytest.raises(MalformedError):
            state.store_blob(DIGEST, STORED[:-1])
        assert state.digests() == frozenset()


@pytest.mark.parametrize("damage", [b"", b"QF", STORED[:-1], STORED + b"x", encode_blob(b"evil content")])
def test_a_damaged_blob_is_reported_and_removed(tmp_path: Path, damage: bytes) -> None:
    with StateFolder(tmp_path) as state:
        state.store_blob(DIGEST, STORED)
        (tmp_path / "blobs" / DIGEST).write_bytes(damage)
        with pytest.raises(DigestMismatchError, match="fetch it again"):
            state.read_blob(DIGEST)
        assert not state.has_blob(DIGEST)
        state.store_blob(DIGEST, STORED)
        assert state.read_blob(DIGEST) == STORED


def test_a_blob_that_is_not_held_is_not_found(tmp_path: Path) -> None:
    with StateFolder(tmp_path) as state, pytest.raises(NotFoundError):
        state.read_blob(DIGEST)


@pytest.mark.parametrize(
    "name", ["../manifest", "/etc/passwd", "manifest", "", DIGEST.upper(), DIGEST + "/.."]
)
def test_names_that_are_no_digests_reach_no_file(tmp_path: Path, name: str) -> None:
    with StateFolder(tmp_path) as state:
        for use in (state.read_blob, state.has_blob, lambda n: state.store_blob(n, STORED)):
            with pytest.raises(MalformedError, match="not a digest"):
                use(name)


def test_a_manifest_whose_blobs_are_not_held_is_refused(tmp_path: Path) -> None:
    artifact = example().artifact()
    with StateFolder(tmp_path) as state:
        for digest, stored in list(artifact.blobs.items())[1:]:
            state.store_blob(digest, stored)
        with pytest.raises(NotFoundError, match="1 blobs"):
            state.write_manifest(artifact.manifest)
        assert state.read_manifest() is None


def test_damaged_slots_are_refused(tmp_path: Path) -> None:
    with StateFolder(tmp_path) as state:
        for damage in (b"\xff", b"{}", bytes(2 << 20)):
            (tmp_path / "slots").write_bytes(damage)
            with pytest.raises(MalformedError):
                state.read_manifest()


def test_a_damaged_manifest_is_refused_and_removed(tmp_path: Path) -> None:
    artifact = example().artifact()
    with StateFolder(tmp_path) as state:
        install(state, artifact)
        (tmp_path / "blobs" / artifact.manifest.digest()).write_bytes(b"QF")
        with pytest.raises(DigestMismatchError):
            state.read_manifest()
        with pytest.raises(NotFoundError):
            state.read_manifest()


def test_what_a_crash_left_half_written_is_cleared_away(tmp_path: Path) -> None:
    with StateFolder(tmp_path) as state:
        state.store_blob(DIGEST, STORED)
    (tmp_path / "blobs" / f"{DIGEST}.1.2.tmp").write_bytes(b"half")
    (tmp_path / "slots.1.2.tmp").write_bytes(b"half")
    with StateFolder(tmp_path) as state:
        assert state.digests() == {DIGEST}
        assert not list(tmp_path.rglob("*.tmp"))


def test_a_write_that_fails_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with StateFolder(tmp_path) as state:
        state.write_samples(b"old")

        def full(_: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(ConfigurationError, match="No space left on device"):
            state.write_samples(b"new")
        assert state.read_samples() == b"old"
        assert not list(tmp_path.glob("*.tmp"))


PREAMBLE = """
import sys
from client.folder_lock import Access
from client.state import StateFolder
"""


def in_another_process(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PREAMBLE + script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_second_owner_is_refused_while_the_first_runs(tmp_path: Path) -> None:
    script = "StateFolder(sys.argv[1])"
    with StateFolder(tmp_path):
        second = in_another_process(script, tmp_path)
        assert second.returncode != 0
        assert "in use by another process" in second.stderr
    third = in_another_process(script, tmp_path)
    assert third.returncode == 0, third.stderr


def test_a_guest_reads_and_adds_blobs_beside_the_owner(tmp_path: Path) -> None:
    artifact = example().artifact()
    script = """
state = StateFolder(sys.argv[1], Access.GUEST)
print(state.read_manifest().generation, len(state.read_samples()))
state.store_blob(sys.argv[2], bytes.fromhex(sys.argv[3]))
"""
    with StateFolder(tmp_path) as state:
        install(state, artifact)
        state.write_samples(b"samples")
        guest = in_another_process(script, tmp_path, DIGEST, STORED.hex())
        assert (guest.returncode, guest.stdout) == (0, "0 7\n"), guest.stderr
        assert state.read_blob(DIGEST) == STORED


def test_a_guest_does_not_decide_what_serves_while_there_is_an_owner(tmp_path: Path) -> None:
    artifact, other = example().artifact(), example().artifact(1, width=2.0)
    with StateFolder(tmp_path) as state:
        install(state, artifact)
        install_blobs(state, other)
        manifest = tmp_path / "other"
        manifest.write_bytes(other.manifest.to_bytes())
        script = """
from quantization.manifest import Manifest
manifest = Manifest.from_bytes(open(sys.argv[2], "rb").read())
StateFolder(sys.argv[1], Access.GUEST).write_manifest(manifest)
"""
        refused = in_another_process(script, tmp_path, manifest)
        assert "another process decides what serves" in refused.stderr
        assert state.read_manifest() == artifact.manifest
    assert in_another_process(script, tmp_path, manifest).returncode == 0
    with StateFolder(tmp_path) as state:
        assert state.read_manifest() == other.manifest


def test_guests_share_the_folder_with_each_other_and_with_a_later_owner(tmp_path: Path) -> None:
    with StateFolder(tmp_path, Access.GUEST), StateFolder(tmp_path, Access.GUEST):
        assert in_another_process("StateFolder(sys.argv[1], Access.GUEST)", tmp_path).returncode == 0
        assert in_another_process("StateFolder(sys.argv[1])", tmp_path).returncode == 0


def test_what_a_guest_is_writing_is_not_cleared_away(tmp_path: Path) -> None:
    with StateFolder(tmp_path, Access.GUEST):
        half = tmp_path / "blobs" / f"{DIGEST}.1.2.tmp"
        half.write_bytes(b"half")
        with StateFolder(tmp_path):
            assert half.exists()
    with StateFolder(tmp_path):
        assert not half.exists()


def test_two_processes_that_store_one_blob_at_once_store_it_whole(tmp_path: Path) -> None:
    content = bytes(range(256)) * 4000
    digest, stored = content_digest(content), encode_blob(content, level=1)
    with StateFolder(tmp_path) as state:
        script = """
from quantization.blob import encode_blob, content_digest
content = bytes(range(256)) * 4000
state = StateFolder(sys.argv[1], Access.GUEST)
for _ in range(30):
    state.store_blob(content_digest(content), encode_blob(content, level=1))
"""
        other = subprocess.Popen([sys.executable, "-c", PREAMBLE + script, str(tmp_path)])
        while other.poll() is None:
            state.store_blob(digest, stored)
            assert state.read_blob(digest) == stored
        assert other.returncode == 0


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigurationError, match="cannot be written"):
        StateFolder(tmp_path / "file" / "state")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_a_clear_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigurationError, match="choose a writable folder"):
        StateFolder(tmp_path / "state")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_what_is_in_a_read_only_folder_can_be_served(tmp_path: Path) -> None:
    with StateFolder(tmp_path) as state:
        install(state, example().artifact())
    tmp_path.chmod(0o500)
    with StateFolder(tmp_path) as state:
        manifest = state.read_manifest()
        assert manifest is not None
        assert state.missing_blobs(manifest) == []
        with pytest.raises(ConfigurationError, match="cannot be written"):
            state.write_samples(b"")
    tmp_path.chmod(0o700)


def test_sampled_inputs_are_for_the_owner_alone(tmp_path: Path) -> None:
    with StateFolder(tmp_path) as state:
        state.write_samples(b"inputs")
        assert state.read_samples() == b"inputs"
    assert (tmp_path / "samples.npz").stat().st_mode & 0o777 == 0o600


def test_who_wants_to_own_a_folder_waits_for_a_guest_that_owns_it_for_a_moment(tmp_path: Path) -> None:
    with StateFolder(tmp_path, Access.GUEST) as guest:
        is_owner, is_over = threading.Event(), threading.Event()

        def own() -> None:
            with guest.lock.owning() as is_taken:
                assert is_taken
                is_owner.set()
                is_over.wait(0.1)

        thread = threading.Thread(target=own)
        thread.start()
        assert is_owner.wait(60)
        with StateFolder(tmp_path):
            pass
        thread.join()


def test_other_users_cannot_open_the_locks(tmp_path: Path) -> None:
    with StateFolder(tmp_path):
        assert all((tmp_path / name).stat().st_mode & 0o007 == 0 for name in ("lock", "guests"))
