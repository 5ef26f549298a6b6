"""Which check stops which attack of test_identity_attacks; see `attack_checks`."""

from typing import Any

import grpc
from check_removal import Check, Removal, Replaced

from server.certificates import Authority

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


IDENTITY_REMOVALS = (
    # Certificates.
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
)
