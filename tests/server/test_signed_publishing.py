"""Publishing with real keys, metadata and registry; and what a process that dies on the way leaves."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from shop import CLASS, Shop, make_shop
from trust import MemoryFiles, chunked

from client.trusted_metadata import TrustedMetadata
from quantization.device_class import X86_VNNI
from quantization.errors import (
    ConfigurationError,
    DigestMismatchError,
    IllegalTransitionError,
    NotFoundError,
    UpdateRejectedError,
)
from quantization.target_name import TargetName
from server.home_folder import HomeFolder
from server.private_files import put_file
from server.publishable import check_publishable
from server.rollout import Event, Phase
from server.signed_publishing import Published, publish, sign_change
from server.stores import open_stores


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    made = make_shop(tmp_path, is_insecure=False)
    yield made
    made.stores.engine.dispose()


def published(shop: Shop, number: int, **keywords: bool) -> Published:
    """Publish one of the shop's artifacts, as the command on the server's host does."""
    folder = HomeFolder(shop.settings.home)
    return publish(
        shop.stores.publisher,
        shop.manifests[number],
        folder.metadata,
        folder.offline_keys(),
        folder.online_keys(),
        actor="ana",
        reason="better",
        **keywords,
    )


def signed(shop: Shop) -> dict[int, str]:
    """Return which content each version is signed with, as a device reads it."""
    names = HomeFolder(shop.settings.home).metadata.targets()
    return {name.version: digest for name, digest in names.items()}


def believed(shop: Shop, version: int, number: int) -> bool:
    """Return whether a device takes an artifact under a version."""
    metadata = HomeFolder(shop.settings.home).metadata
    trusted = TrustedMetadata(MemoryFiles(), first_root=metadata.read("root", 1))
    trusted.refresh(lambda role, at: chunked(metadata.read(role, at)), now_seconds=time.time())
    name = TargetName(shop.model_digest, CLASS, version)
    try:
        return trusted.manifest_of(name, least_version=0).digest == shop.manifests[number]
    except UpdateRejectedError:
        return False


def advance(shop: Shop, event: Event) -> None:
    rollouts = shop.stores.rollouts
    rollouts.advance(rollouts.rollouts()[-1], event, actor="ana", reason="")


def test_the_first_version_needs_one_name_and_goes_to_all(shop: Shop) -> None:
    first = published(shop, 0)
    assert (first.version, first.rollout, first.is_new) == (1, None, True)
    assert signed(shop) == {1: shop.manifests[0]}
    assert believed(shop, 1, 0)
    again = published(shop, 0)
    assert (again.version, again.is_new) == (1, False)


def test_a_rollout_is_opened_with_its_way_back_signed(shop: Shop) -> None:
    published(shop, 0)
    opened = published(shop, 1)
    assert opened.rollout is not None
    assert (opened.version, opened.rollout.phase) == (2, Phase.CANARY)
    assert believed(shop, 2, 1)
    assert believed(shop, 3, 0)
    advance(shop, Event.ACCURACY_DROPPED)  # telemetry needs no key
    assert shop.stores.rollouts.target(shop.model_digest, CLASS).version == 3


def test_repeated_publishing_changes_nothing(shop: Shop) -> None:
    published(shop, 0)
    opened = published(shop, 1)
    before = HomeFolder(shop.settings.home).metadata.read("targets")
    again = published(shop, 1)
    assert (again.version, again.rollout, again.is_new) == (2, opened.rollout, False)
    assert HomeFolder(shop.settings.home).metadata.read("targets") == before


def test_another_content_waits_for_the_open_rollout(shop: Shop) -> None:
    published(shop, 0)
    published(shop, 1)
    names = signed(shop)
    with pytest.raises(IllegalTransitionError, match="promote it or roll it back first"):
        published(shop, 2)
    assert signed(shop) == names


def test_after_rolling_back_the_next_publication_signs_the_next_versions(shop: Shop) -> None:
    published(shop, 0)
    published(shop, 1)
    advance(shop, Event.RECALLED)
    third = published(shop, 2)
    assert third.version == 4
    assert signed(shop) == {
        number: shop.manifests[k] for number, k in ((1, 0), (2, 1), (3, 0), (4, 2), (5, 0))
    }
    assert believed(shop, 4, 2)
    assert believed(shop, 5, 0)


def test_after_completing_the_unused_way_back_gets_the_next_content(shop: Shop) -> None:
    published(shop, 0)
    published(shop, 1)
    advance(shop, Event.PROMOTED)
    third = published(shop, 2)
    assert third.version == 3
    assert believed(shop, 3, 2)
    assert not believed(shop, 3, 0)
    assert believed(shop, 4, 1)


def test_a_complete_rollout_can_still_be_recalled(shop: Shop) -> None:
    published(shop, 0)
    opened = published(shop, 1, is_immediate=True)
    assert opened.rollout is not None
    assert opened.rollout.phase is Phase.COMPLETE
    change = shop.stores.publisher.plan_way_back(opened.rollout.rollout_id)
    assert shop.stores.publisher.is_signed(change)
    advance(shop, Event.RECALLED)
    assert believed(shop, 3, 0)


def test_a_way_back_that_another_publication_took_is_signed_anew(shop: Shop) -> None:
    published(shop, 0)
    opened = published(shop, 1, is_immediate=True)
    abandoned(shop, 2)  # signed version 3 for another content, and died
    assert opened.rollout is not None
    change = shop.stores.publisher.plan_way_back(opened.rollout.rollout_id)
    assert not shop.stores.publisher.is_signed(change)
    folder = HomeFolder(shop.settings.home)
    sign_change(change, folder.metadata, folder.offline_keys(), folder.online_keys(), now_seconds=time.time())
    assert shop.stores.publisher.is_signed(change)
    assert believed(shop, 3, 0)


def abandoned(shop: Shop, number: int) -> None:
    """Sign for a publication that is never opened."""
    folder = HomeFolder(shop.settings.home)
    change = shop.stores.publisher.plan(shop.manifests[number])
    sign_change(change, folder.metadata, folder.offline_keys(), folder.online_keys(), now_seconds=time.time())


def test_what_an_abandoned_publication_signed_is_replaced(shop: Shop) -> None:
    published(shop, 0)
    abandoned(shop, 1)
    assert believed(shop, 2, 1)
    assert published(shop, 2).version == 2
    assert believed(shop, 2, 2)
    assert not believed(shop, 2, 1)


def test_what_was_rolled_back_is_published_again_only_if_asked(shop: Shop) -> None:
    published(shop, 0)
    published(shop, 1)
    advance(shop, Event.RECALLED)
    with pytest.raises(IllegalTransitionError, match="was rolled back"):
        published(shop, 1)
    assert published(shop, 1, is_again=True).version == 4


def test_names_of_old_versions_are_signed_no_more(shop: Shop) -> None:
    published(shop, 0)
    for number in (1, 2, 0, 1, 2):
        published(shop, number, is_immediate=True)
    assert sorted(signed(shop)) == [3, 4, 5, 6, 7]


class Died(BaseException):
    """What the process dies of."""


def dying(monkeypatch: pytest.MonkeyPatch, at: int) -> Callable[[], int]:
    """Let the process die before it puts its file number `at` in place; returns how many it has put."""
    put, calls = put_file, 0

    def put_or_die(path: Path, data: bytes, mode: int) -> None:
        nonlocal calls
        calls += 1
        if calls > at:
            raise Died
        put(path, data, mode)

    monkeypatch.setattr("server.metadata_folder.put_file", put_or_die)
    return lambda: calls


@pytest.mark.parametrize("files", [0, 1, 2, 3])
@pytest.mark.parametrize("is_first", [True, False])
def test_a_process_that_dies_anywhere_is_followed_by_one_that_ends_it(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, files: int, is_first: bool
) -> None:
    if not is_first:
        published(shop, 0)
    number = 0 if is_first else 1
    with monkeypatch.context() as patch:
        dying(patch, files)
        if files == 3:  # all is signed, and it dies before the registry knows
            patch.setattr(type(shop.stores.publisher), "open", lambda *_, **__: (_ for _ in ()).throw(Died()))
        with pytest.raises(Died):
            published(shop, number)
    assert not shop.stores.rollouts.rollouts(only_open=True)
    done = published(shop, number)
    assert done.is_new
    assert done.version == number + 1
    assert believed(shop, done.version, number)
    if not is_first:
        assert believed(shop, 3, 0)
        assert len(shop.stores.rollouts.rollouts()) == 1


def test_a_device_never_sees_a_half_made_repository(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    published(shop, 0)
    for files in (0, 1, 1):  # what died before left fewer to put
        with monkeypatch.context() as patch:
            dying(patch, files)
            with pytest.raises(Died):
                published(shop, 1)
        assert believed(shop, 1, 0)


def test_a_server_without_metadata_signs_nothing(tmp_path: Path) -> None:
    shop = make_shop(tmp_path)
    assert shop.stores.signing is None
    first = publish(shop.stores.publisher, shop.manifests[0], None, None, None, actor="ana")
    assert (first.version, first.is_new) == (1, True)
    assert publish(shop.stores.publisher, shop.manifests[1], None, None, None, actor="ana").version == 2
    shop.stores.engine.dispose()


def test_what_was_published_without_signatures_is_signed_when_there_are_keys(tmp_path: Path) -> None:
    insecure = make_shop(tmp_path / "a")
    publish(insecure.stores.publisher, insecure.manifests[0], None, None, None, actor="ana")
    keyed = make_shop(tmp_path / "b", is_insecure=False)
    (tmp_path / "b" / "registry.db").unlink()
    keyed.stores.engine.dispose()
    settings = replace(
        keyed.settings,
        server=replace(keyed.settings.server, registry_url=f"sqlite:///{tmp_path / 'a' / 'registry.db'}"),
    )
    shop = Shop(settings, open_stores(settings), keyed.model_digest, keyed.manifests)
    assert published(shop, 0).is_new is False
    assert believed(shop, 1, 0)
    assert published(shop, 1).version == 2
    assert believed(shop, 3, 0)


def test_opening_is_refused_where_names_are_not_signed(shop: Shop) -> None:
    change = shop.stores.publisher.plan(shop.manifests[0])
    with pytest.raises(IllegalTransitionError, match="not signed"):
        shop.stores.publisher.open(change, actor="ana", reason="")


def test_a_plan_is_refused_once_another_version_is_there(shop: Shop) -> None:
    published(shop, 0)
    change = shop.stores.publisher.plan(shop.manifests[1])
    abandoned(shop, 1)
    shop.stores.rollouts.publish(shop.model_digest, CLASS, shop.manifests[2], reason="", actor="bob")
    with pytest.raises(IllegalTransitionError, match="publish again"):
        shop.stores.publisher.open(change, actor="ana", reason="")


def test_an_artifact_that_is_not_whole_is_refused(shop: Shop) -> None:
    with pytest.raises(NotFoundError, match="not in the blob store"):
        shop.stores.publisher.plan("ab" * 32)
    manifest = check_publishable(shop.manifests[0], shop.stores.registry, shop.stores.blobs)
    blob = next(iter(manifest.blobs))
    path = shop.settings.home / "blobs" / blob[:2] / blob
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DigestMismatchError, match="cannot be published"):
        shop.stores.publisher.plan(shop.manifests[0])
    path.unlink()
    with pytest.raises(NotFoundError, match="cannot be published"):
        shop.stores.publisher.plan(shop.manifests[0])


def test_an_artifact_for_a_class_that_the_model_was_not_prepared_for_is_refused(tmp_path: Path) -> None:
    shop = make_shop(tmp_path)
    digest = shop.manifests[0]
    with open_stores(replace(shop.settings, home=tmp_path / "other")).registry as registry:
        registry.add_device_class(X86_VNNI)
        with pytest.raises(NotFoundError, match="was not prepared"):
            check_publishable(digest, registry, shop.stores.blobs)
    shop.stores.engine.dispose()


def test_keys_are_needed_where_metadata_is_signed(shop: Shop) -> None:
    metadata = HomeFolder(shop.settings.home).metadata
    with pytest.raises(ConfigurationError, match="needs the offline and online keys"):
        publish(shop.stores.publisher, shop.manifests[0], metadata, None, None, actor="ana")
