"""Which check stops which attack of tests/attacks: each is taken out, and the attack's test must fail then.

A row of several checks says in `why` what each is good for. What is not here is said at the end, with the reason.
"""

from typing import Any

import grpc
from check_removal import Check, Removal, Replaced

from server.certificates import Authority

_TRUSTED_SET = "tuf.ngclient._internal.trusted_metadata_set:TrustedMetadataSet"

# Parts that are taken out in several rows.

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
NOT_REVOKED = Check(
    "server.identity:Identity.caller",
    "self._is_revoked is None or self._is_revoked(caller.serial, caller.principal.uri)",
)
ROLE = Check("server.identity:Identity._named", "caller.principal.role is not role")
PURPOSE = Check(
    "server.certificates:Authority._issue",
    "x509.ExtendedKeyUsage([purpose])",
    "x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])",
)
REQUEST_SIZE = Check("server.signing_requests:requested_key", "0 < len(request) <= MAX_REQUEST_BYTES", "True")

# TLS asks for the server's configuration at every handshake, which says whom it trusts.

_authorities: list[bytes] = []


def _remembering(create: Any) -> Any:
    """Return what makes authorities, and remembers them."""

    def make(_class: type, **keywords: Any) -> Authority:
        made: Authority = create.__func__(Authority, **keywords)
        _authorities.append(made.certificate_pem)
        return made

    return classmethod(make)


def _trusting(_changed: Any) -> Any:
    """Return a configuration that trusts whatever authority there is."""

    def changed(self: Any) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([self._pki.server_pair()], b"".join(_authorities))

    return changed


ONE_AUTHORITY = (
    Replaced("server.certificates:Authority.create", _remembering),
    Replaced("server.server_credentials:_Configuration.changed", _trusting),
)


def _unbounded(options: Any) -> Any:
    return (("grpc.max_receive_message_length", -1), *options[1:])


REMOVALS = (
    # tests/attacks/test_update_attacks.py: which version.
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
    # tests/attacks/test_identity_attacks.py: certificates.
    Removal(
        ("test_a_certificate_of_another_authority_is_refused",),
        ONE_AUTHORITY,
        why="TLS trusts the fleet's authority alone; here it is told to trust whatever authority there is",
    ),
    Removal(
        ("test_a_certificate_that_ends_while_connected_is_refused",),
        (
            Check(
                "server.identity:Identity.caller",
                "not caller.not_before_seconds <= now <= caller.not_after_seconds",
            ),
        ),
    ),
    Removal(
        ("test_a_device_cannot_sign_certificates",),
        (
            Check(
                "server.certificates:Authority._issue",
                "x509.BasicConstraints(ca=False, path_length=None)",
                "x509.BasicConstraints(ca=True, path_length=None)",
            ),
            Check(
                "server.certificates:Authority._issue",
                "_usage(digital_signature=True)",
                "_usage(digital_signature=True, key_cert_sign=True)",
            ),
        ),
        why="a device's certificate is no authority's, by two of its fields; the authority's path length of 0 does not "
        "count, because BoringSSL does not look at it in what it trusts from the start",
    ),
    Removal(
        ("test_no_certificate_is_no_caller",),
        (
            Check(
                "server.server_credentials:mutual_credentials",
                "_credentials(pki, needs_certificate=True)",
                "_credentials(pki, needs_certificate=False)",
            ),
        ),
    ),
    Removal(
        ("test_plain_text_is_not_answered",),
        (
            Check(
                "server.grpc_server:_bind",
                "server.add_secure_port(address, credentials)",
                "server.add_insecure_port(address)",
            ),
        ),
    ),
    # Roles.
    Removal(("test_a_device_makes_no_admin_call", "test_an_operator_is_no_device"), (ROLE,)),
    Removal(
        ("test_the_server_s_own_certificate_opens_nothing",),
        (PURPOSE,),
        why="a server's certificate is not for calling; if it were, a server is no device and no operator",
    ),
    Removal(
        ("test_a_device_in_the_server_s_place_is_not_believed",),
        (
            PURPOSE,
            Check(
                "server.certificates:Authority._issue",
                "[*hosts, x509.UniformResourceIdentifier(principal.uri)]",
                "[_host('127.0.0.1'), x509.UniformResourceIdentifier(principal.uri)]",
            ),
        ),
        why="a device's certificate is not for answering, and names no host",
    ),
    Removal(
        ("test_a_device_reports_and_asks_in_its_own_name_alone",),
        (Check("server.identity:Identity.device", "self._is_revoked is None", "True"),),
        why="here what a device says of itself is heard, as by a server without certificates",
    ),
    # Revocation.
    Removal(("test_a_revoked_device_is_refused", "test_a_revoked_operator_is_refused"), (NOT_REVOKED,)),
    Removal(
        ("test_a_watch_of_a_revoked_device_ends",),
        (Check("server.update_service:UpdateService.watch", "self._identify(context)"),),
    ),
    Removal(
        ("test_a_stream_of_blobs_of_a_revoked_device_ends",),
        (Check("server.update_service:UpdateService._send_blobs", "self._identify(context)"),),
    ),
    Removal(
        ("test_a_revoked_device_renews_nothing",),
        (
            NOT_REVOKED,
            Check(
                "server.identity_registry:IdentityRegistry.renew",
                "row.revoked_at_seconds is not None or (shown is not None and shown.revoked_at_seconds is not None)",
            ),
        ),
        why="the registry knows by itself; the test takes the other one out and sees that it does",
    ),
    Removal(
        ("test_the_certificate_of_a_device_that_was_replaced_is_refused",),
        (
            Check(
                "server.identity_registry:IdentityRegistry._enrol",
                "self._revoke_certificates(session, issued.principal, now)",
            ),
        ),
    ),
    # Tokens.
    Removal(
        ("test_a_token_that_was_used_is_refused",),
        (Check("server.enrolment_tokens:good_token", "token.used_key not in (None, public_key)"),),
    ),
    Removal(
        ("test_an_expired_token_is_refused",),
        (Check("server.enrolment_tokens:good_token", "token.expires_at_seconds < now_seconds"),),
    ),
    Removal(
        ("test_a_guessed_token_is_refused",),
        (
            Check(
                "server.enrolment_tokens:good_token",
                "session.get(EnrolmentTokenRow, digest[:TOKEN_ID_LENGTH], with_for_update=True)",
                "session.query(EnrolmentTokenRow).first()",
            ),
            Check(
                "server.enrolment_tokens:good_token",
                "token is None or not hmac.compare_digest(token.secret_digest, digest)",
            ),
        ),
        why="a token is found by its secret, and compared with it",
    ),
    Removal(
        ("test_a_used_token_brings_no_revoked_device_back",),
        (
            Check(
                "server.enrolment_tokens:name_for",
                "row is None or row.public_key != token.used_key or row.revoked_at_seconds is not None",
            ),
        ),
    ),
    Removal(
        ("test_a_token_for_another_device_is_refused",),
        (
            Check("server.enrolment_tokens:name_for", "given is not None and wanted not in ('', given)"),
            Check(
                "server.enrolment_tokens:name_for", "given or check_principal_name(wanted)", "wanted or given"
            ),
        ),
        why="the token's name counts, and another is refused",
    ),
    Removal(
        ("test_a_free_token_takes_no_name_that_is_taken",),
        (Check("server.enrolment_tokens:name_for", "row is not None and token.device is None"),),
    ),
    Removal(
        ("test_another_fleet_s_server_learns_no_token", "test_a_token_with_another_fingerprint_is_not_said"),
        (Check("client.enrolment_calls:fetch_authority", "not hmac.compare_digest(found, fingerprint)"),),
    ),
    Removal(
        ("test_a_server_that_repeats_the_fleet_s_authority_learns_no_token",),
        (
            Check(
                "client.enrolment_calls:enrol",
                "grpc.ssl_channel_credentials(authority_pem)",
                "grpc.ssl_channel_credentials(_shown_certificate(address, timeout_seconds))",
            ),
        ),
        why="TLS holds the server to the authority that was recognised; here to the certificate that it shows",
    ),
    # Requests for certificates.
    Removal(
        ("test_a_request_in_another_s_name_gets_one_s_own",),
        (
            Check(
                "server.enrolment_service:EnrolmentService._enrol",
                "self._authority.issue(principal, key, now_seconds=self._clock())",
                "self._authority.issue(__import__('certificate_requests').named_in(request.certificate_request), key, "
                "now_seconds=self._clock())",
            ),
        ),
        why="whom a certificate names is the registry's word; here it is the request's",
    ),
    Removal(
        ("test_a_request_for_another_s_key_is_refused",),
        (Check("server.signing_requests:requested_key", "not is_good"),),
    ),
    Removal(
        ("test_a_request_with_a_weak_key_is_refused",),
        (
            Check(
                "server.signing_requests:requested_key",
                "not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, _CURVES)",
            ),
        ),
    ),
    Removal(
        (
            "test_a_request_that_is_too_large_is_refused[long]",
            "test_a_request_that_is_too_large_is_refused[huge]",
        ),
        (REQUEST_SIZE,),
    ),
    Removal(
        ("test_a_request_that_is_too_large_is_refused[larger than a message]",),
        (REQUEST_SIZE, Replaced("server.grpc_server:_OPTIONS", _unbounded)),
        why="no message is larger than 256 KiB, and no request than 4 KiB",
    ),
    Removal(
        ("test_bytes_that_are_no_request_are_refused",),
        (Check("server.signing_requests:requested_key", "UNREADABLE", "()", times=2),),
        why="what `cryptography` says of them ends the call as a bad one; here it is a failure of the server",
    ),
    Removal(
        ("test_a_name_is_no_path_and_no_second_uri",),
        (Check("quantization.principal:check_principal_name", "not _NAME.fullmatch(name)"),),
    ),
    # tests/attacks/test_telemetry_attacks.py
    Removal(
        (
            "test_replayed_reports_are_counted_once",
            "test_a_report_that_is_replayed_for_another_class_is_not_counted",
        ),
        (Check("server.telemetry_folding:Folding.fold", "report.sequence > self._last[device]", "True"),),
    ),
    Removal(
        ("test_what_another_manifest_did_is_no_evidence_of_a_version",),
        (
            Check(
                "server.telemetry_folding:Folding._checked",
                "self._manifests.get((*key, report.version)) == report.manifest_digest",
                "True",
            ),
        ),
    ),
    Removal(
        ("test_a_device_that_lies_counts_no_more_than_it_can_have_answered",),
        (Check("server.telemetry_budget:Budget.counted_until", "end <= self.now_seconds", "True"),),
    ),
    Removal(
        ("test_sums_that_are_full_refuse_nobody",),
        (Check("server.telemetry_counts:_sum", "min(a + b, _MAX_TOTAL)", "a + b"),),
        lands="MalformedError: telemetry counts must not be",
        why="a sum that is too large is then no sum",
    ),
)

ELSEWHERE = {
    "test_declared_sizes_bound_what_a_bomb_takes": (
        "it runs its victim a second time, in a process of its own, with the check taken out"
    ),
    "test_a_certificate_out_of_its_time_is_refused": (
        "BoringSSL compares the time, where nothing can be taken out; the test shows that such a caller is answered "
        "whose certificate is in its time"
    ),
}
"""Attacks whose check cannot be taken out here, and what proves them instead."""

NO_ATTACKS = {
    "test_what_is_signed_is_installed": "that the bench works at all",
    "test_bounds_of_metadata_are_those_of_its_verification": "that two constants agree",
    "test_lists_of_methods_are_those_of_the_schema": "that the attacks below it try every method",
    "test_a_service_may_send_a_blob_from_its_start_again": "what is allowed",
}
"""Tests of the folder that no attack is in; those whose names start with `test_control_` are none, either."""
