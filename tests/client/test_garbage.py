import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from artifacts import example

from client.folder_lock import Access
from client.garbage import Limits, collect, make_room, named_digests, used_bytes
from client.slots import Event, Phase, Slots, Target
from client.state import StateFolder
from quantization.artifact import Artifact
from quantization.errors import ConfigurationError, UpdateRejectedError

OLDEST, OLD, NEW, NEXT = (
    example("mlp").artifact(number, width=4.0 + number, bits=bits, is_observed=False)
    for number, bits in enumerate((3, 4, 5, 8))
)


def fill(state: StateFolder, *artifacts: Artifact) -> None:
    for artifact in artifacts:
        for digest, stored in artifact.blobs.items():
            state.store_blob(digest, stored)
        state.store_manifest(artifact.manifest)


def target(artifact: Artifact) -> Target:
    return Target(artifact.manifest.generation + 1, artifact.manifest.digest())


def digests(*artifacts: Artifact) -> set[str]:
    return {digest for artifact in artifacts for digest in (*artifact.blobs, artifact.manifest.digest())}


@pytest.fixture
def state(tmp_path: Path) -> Iterator[StateFolder]:
    with StateFolder(tmp_path) as folder:
        fill(folder, OLDEST, OLD, NEW)
        folder.write_slots(Slots(Phase.STAGED, target(OLD), target(NEW), target(OLDEST)))
        yield folder


def test_what_slots_name_stays_and_the_rest_goes(state: StateFolder) -> None:
    fill(state, NEXT)
    assert collect(state, [NEXT.manifest]) == 0
    assert collect(state) == len(digests(NEXT) - digests(OLDEST, OLD, NEW))
    assert state.digests() == digests(OLDEST, OLD, NEW) == named_digests(state)
    state.write_slots(Slots(Phase.CONFIRMED, target(NEW), None, target(OLD)))
    collect(state)
    assert state.digests() == digests(OLD, NEW)


def test_an_artifact_whose_manifest_is_lost_does_not_keep_the_others_from_being_found(
    state: StateFolder,
) -> None:
    state.blobs.remove(OLDEST.manifest.digest())
    collect(state)
    assert state.digests() == digests(OLD, NEW)


def test_while_a_guest_is_there_nothing_is_removed(state: StateFolder) -> None:
    fill(state, NEXT)
    script = """
import sys
from client.folder_lock import Access
from client.state import StateFolder
with StateFolder(sys.argv[1], Access.GUEST):
    print("here", flush=True)
    sys.stdin.readline()
"""
    guest = subprocess.Popen(
        [sys.executable, "-c", script, str(state.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert guest.stdout is not None
    assert guest.stdout.readline() == "here\n"
    assert collect(state) == 0
    assert state.digests() >= digests(NEXT)
    guest.communicate("go\n")
    assert collect(state) > 0
    with StateFolder(state.path, Access.GUEST):
        assert collect(state) == 0


def room(state: StateFolder, spare_bytes: int) -> Limits:
    """Return limits that leave so many bytes beside what is there."""
    return Limits(disk_bytes=used_bytes(state) + spare_bytes, free_bytes=0)


NEEDED = sum(
    ref.stored_size_bytes + 8 for digest, ref in NEXT.manifest.blobs.items() if digest not in digests(OLD)
)


def came(state: StateFolder, digest: str, size_bytes: int) -> Path:
    """Let so many bytes of a blob have come."""
    path = state.path / "partial" / digest
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"x" * size_bytes)
    return path


def test_a_bundle_needs_room_beside_what_it_holds(state: StateFolder) -> None:
    assert make_room(state, NEXT.manifest, room(state, 2 * NEEDED))
    limits = room(state, 2 * NEEDED)
    path = came(state, NEXT.manifest.digest(), 100)
    assert make_room(state, NEXT.manifest, limits)  # what came of it is counted once
    assert not make_room(state, NEXT.manifest, room(state, 2 * NEEDED - 101))
    assert not path.exists()  # blob by blob there is room, also for what there is to go back to
    assert state.slots().fallback == target(OLDEST)


def test_what_came_of_a_blob_is_counted_once(state: StateFolder) -> None:
    limits = room(state, NEEDED)
    digest = next(digest for digest in NEXT.manifest.blobs if not state.has_blob(digest))
    came(state, digest, 50)
    make_room(state, NEXT.manifest, limits)
    assert state.slots().fallback == target(OLDEST)


def test_an_update_that_fits_removes_nothing(state: StateFolder) -> None:
    fill_size = len(state.digests())
    make_room(state, NEXT.manifest, room(state, NEEDED))
    assert (len(state.digests()), state.slots().fallback) == (fill_size, target(OLDEST))


def test_for_an_update_that_does_not_fit_what_there_is_to_go_back_to_goes_first(state: StateFolder) -> None:
    make_room(state, NEXT.manifest, room(state, NEEDED - 1))
    assert state.slots() == Slots(Phase.STAGED, target(OLD), target(NEW))
    assert state.digests() == digests(OLD, NEW)


def test_an_update_that_cannot_fit_is_refused_and_what_serves_stays(state: StateFolder) -> None:
    with pytest.raises(UpdateRejectedError, match="more than this device can give"):
        make_room(state, NEXT.manifest, Limits(disk_bytes=1000, free_bytes=0))
    with pytest.raises(UpdateRejectedError):
        make_room(state, NEXT.manifest, Limits(free_bytes=1 << 62))
    assert state.digests() == digests(OLD, NEW)
    assert state.read_manifest() == OLD.manifest


def test_what_is_on_trial_and_what_it_would_go_back_to_stay(state: StateFolder) -> None:
    state.advance(Event.TEST_STARTED)
    state.advance(Event.TEST_PASSED)
    with pytest.raises(UpdateRejectedError):
        make_room(state, NEXT.manifest, Limits(disk_bytes=1, free_bytes=0))
    assert state.digests() == digests(OLDEST, OLD, NEW)


def test_over_a_metered_network_only_small_updates_come() -> None:
    limits = Limits(metered_bytes=1000)
    assert limits.may_fetch(1 << 30, is_metered=False)
    assert limits.may_fetch(1000, is_metered=True)
    assert not limits.may_fetch(1001, is_metered=True)
    assert not Limits(metered_bytes=0).may_fetch(1, is_metered=True)


@pytest.mark.parametrize("wrong", ["disk_bytes", "free_bytes", "metered_bytes"])
def test_limits_below_nothing_are_refused(wrong: str) -> None:
    with pytest.raises(ConfigurationError, match="0 bytes or more"):
        Limits(**{wrong: -1})
