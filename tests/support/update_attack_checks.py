"""Which check stops which attack of test_update_attacks; see `attack_checks`."""

from check_removal import Check, Removal, Replaced

_TRUSTED_SET = "tuf.ngclient._internal.trusted_metadata_set:TrustedMetadataSet"

SIGNATURES = Replaced("tuf.api.metadata:Root.verify_delegate", lambda _: lambda *_: None)
EXPIRY = Replaced("tuf.api._payload:Signed.is_expired", lambda _: lambda *_: False)
DIGEST_OF_SNAPSHOT = Check(f"{_TRUSTED_SET}.update_snapshot", "snapshot_meta.verify_length_and_hashes(data)")
# Of what a device keeps, versions are looked at all the same: that is how it knows that there is something to fetch.
VERSION_OF_SNAPSHOT = (
    Check(
        f"{_TRUSTED_SET}.update_snapshot",
        "self._check_final_snapshot()",
        "trusted and self._check_final_snapshot()",
    ),
    Check(f"{_TRUSTED_SET}.update_delegated_targets", "self._check_final_snapshot()"),
)
VERSION_OF_TARGETS = Check(
    f"{_TRUSTED_SET}.update_delegated_targets",
    "version != meta.version",
    "version != meta.version and not vars(self).setdefault('kept', []) and not self.kept.append(version)",
)
TARGETS_GO_ON = Check(f"{_TRUSTED_SET}.update_snapshot", "new_fileinfo.version < fileinfo.version")
LISTED = Check(
    "client.signed_offers:SignedOffers.check",
    "self._trust.manifest_of(name, least_version=least_version)",
    "__import__('types').SimpleNamespace(digest=offered.manifest_digest, size_bytes=1 << 20)",
)
CONTENT_DIGEST = Check("quantization.blob:_verified", "actual != digest")
CONTENT_SIZE = Check("quantization.blob:_verified", "len(plain) != body_size")

UPDATE_REMOVALS = (
    # Which version.
    Removal(("test_a_version_that_is_not_signed_is_refused",), (LISTED,)),
    Removal(
        ("test_another_manifest_than_the_signed_one_is_refused",),
        (Check("client.signed_offers:SignedOffers.check", "signed.digest != offered.manifest_digest"),),
    ),
    Removal(
        ("test_a_target_of_another_class_is_refused",),
        (
            Check(
                "client.trusted_metadata:TrustedMetadata.manifest_of",
                "self._targets.get(str(name))",
                "next(f for n, f in self._targets.items() if n.endswith(f'/{name.version}'))",
            ),
        ),
        why="a name is looked up as a whole",
    ),
    Removal(
        ("test_rollback_of_a_version_is_refused",),
        (Check("client.trusted_metadata:TrustedMetadata.manifest_of", "name.version < least_version"),),
    ),
    Removal(
        ("test_a_version_that_the_device_once_had_bounds_what_it_takes",),
        (Check("client.grpc_transport:GrpcTransport.check", "self._least_version()", "0"),),
    ),
    Removal(
        ("test_rollback_of_metadata_is_refused[timestamp]",),
        (
            Check(f"{_TRUSTED_SET}.update_timestamp", "new_timestamp.version < self.timestamp.version"),
            Check(f"{_TRUSTED_SET}.update_timestamp", "new_snapshot_meta.version < snapshot_meta.version"),
            TARGETS_GO_ON,
        ),
        why="an old timestamp names an old snapshot, which names old targets: none of the three goes back",
    ),
    Removal(
        ("test_rollback_of_metadata_is_refused[snapshot]",),
        (DIGEST_OF_SNAPSHOT, TARGETS_GO_ON, *VERSION_OF_SNAPSHOT),
        why="an old snapshot is not the one that the timestamp names, by digest and by version, and names old targets",
    ),
    Removal(("test_rollback_of_metadata_is_refused[targets]",), (VERSION_OF_TARGETS,)),
    Removal(
        ("test_a_device_that_is_kept_from_news_finds_out_when_what_it_has_expires",),
        (Check("client.signed_offers:SignedOffers.check", "not is_due", "True"),),
    ),
    Removal(("test_metadata_that_has_expired_is_refused",), (EXPIRY,)),
    Removal(
        ("test_parts_of_different_times_do_not_mix[snapshot]",),
        (DIGEST_OF_SNAPSHOT, *VERSION_OF_SNAPSHOT),
        why="timestamp names the snapshot by digest and by version",
    ),
    Removal(("test_parts_of_different_times_do_not_mix[targets]",), (VERSION_OF_TARGETS,)),
    # Who signed.
    Removal(
        (
            "test_another_signer_is_refused[root]",
            "test_another_signer_is_refused[timestamp]",
            "test_another_signer_is_refused[targets]",
            "test_stolen_online_keys_sign_no_targets",
            "test_too_few_signatures_are_refused[drop_signature]",
            "test_what_was_signed_and_changed_afterwards_is_refused",
        ),
        (SIGNATURES,),
    ),
    Removal(
        ("test_another_signer_is_refused[snapshot]",),
        (SIGNATURES, DIGEST_OF_SNAPSHOT),
        why="a snapshot is signed, and the timestamp names its digest",
    ),
    Removal(
        ("test_too_few_signatures_are_refused[repeat_signature]",),
        (
            SIGNATURES,
            Check("tuf.api.metadata:Metadata.from_dict", "sig.keyid in signatures"),
        ),
        why="one key's signature counts once, and is refused where it is there twice",
    ),
    # How much.
    Removal(
        (
            "test_endless_metadata_is_left[chunks]",
            "test_endless_metadata_is_left[more than said]",
            "test_endless_metadata_is_left[said]",
        ),
        (
            Check("client.update_messages:metadata_chunks", "max(came, chunk.total_bytes) > limit"),
            Check("client.trusted_metadata:_read", "len(data) + len(chunk) > limit"),
        ),
        lands="timestamp is refused",
        why="the connection bounds what comes, and so does whoever verifies; without both, all of it is read",
    ),
    Removal(
        ("test_endless_metadata_is_left[nothing]",),
        (Check("client.update_messages:metadata_chunks", "number and (not chunk.data)"),),
        lands="timestamp is refused",
        why="all of it is then read",
    ),
    Removal(
        ("test_endless_blobs_are_left",),
        (
            Check(
                "client.fetching:_receive",
                "offset != end or end + len(data) > total",
                "offset != end",
            ),
        ),
    ),
    Removal(
        ("test_a_manifest_larger_than_signed_is_refused",),
        (
            Check(
                "client.signed_offers:SignedOffers.check_size",
                "signed is not None and size_bytes > HEADER_BYTES + signed",
            ),
        ),
        lands="MalformedError: a blob starts with",
        why="it is then fetched, and read",
    ),
    Removal(
        ("test_a_manifest_that_is_signed_and_too_large_is_refused",),
        (
            Check(
                "client.trusted_metadata:TrustedMetadata.manifest_of",
                "0 < file.length <= MAX_MANIFEST_BYTES",
                "True",
            ),
        ),
    ),
    Removal(
        ("test_a_blob_larger_than_its_manifest_says_is_refused",),
        (Check("client.fetching:_checked", "payload.total_bytes > HEADER_BYTES + size_bytes"),),
        lands="UnreachableError: the stream of blobs ended too early",
        why="its 2^40 bytes are then waited for",
    ),
    # What.
    Removal(
        (
            "test_a_blob_in_the_place_of_another_is_refused",
            "test_a_service_that_ignores_offsets_installs_nothing_wrong[the start as the rest]",
        ),
        (CONTENT_DIGEST,),
    ),
    Removal(
        ("test_a_manifest_in_the_place_of_another_is_refused",),
        (CONTENT_DIGEST,),
        lands="NotFoundError: blob .* is not in",
        why="what it names is then fetched, and the manifest kept under a name that no slot has",
    ),
    Removal(
        ("test_a_service_that_ignores_offsets_installs_nothing_wrong[another offset]",),
        (
            Check(
                "client.partial:PartialBlobs.begin",
                "payload != self._payload(payload.digest) or offset_bytes != self.size_bytes(payload.digest)",
            ),
            CONTENT_SIZE,
            CONTENT_DIGEST,
        ),
        why="what goes on elsewhere is not taken; if it were, the content would have another size and digest",
    ),
    # Names.
    Removal(
        ("test_a_class_cannot_be_a_path",),
        (
            Check("quantization.target_name:TargetName.__post_init__", "_NAME.fullmatch(str(self)) is None"),
            LISTED,
        ),
        why="what is no name is not among those that are signed, either",
    ),
    Removal(
        (
            "test_a_signed_manifest_cannot_name_a_path[../../slots]",
            "test_a_signed_manifest_cannot_name_a_path[/etc/passwd]",
            "test_a_signed_manifest_cannot_name_a_path[a/../../b]",
        ),
        (
            Check(
                "quantization.blob_ref:check_location",
                "len(location) > MAX_NAME_LENGTH or not _LOCATION.fullmatch(location) or {'', '.', '..'} & set(parts)",
            ),
        ),
    ),
    Removal(
        ("test_a_signed_manifest_cannot_name_a_path[]",),
        (
            Check(
                "quantization.manifest:_check_files",
                "locations != sorted(set(locations)) or '' in locations",
            ),
        ),
    ),
    Removal(
        ("test_metadata_is_kept_under_the_names_of_roles_alone",),
        (Check("client.trusted_metadata:MetadataFolder._file", "role not in MAX_BYTES"),),
    ),
)
