"""Which check stops which attack of tests/attacks: each is taken out, and the attack's test must fail then.

A row of several checks says in `why` what each is good for. What is not here is said at the end, with the reason.
"""

from identity_attack_checks import IDENTITY_REMOVALS
from telemetry_attack_checks import TELEMETRY_REMOVALS
from update_attack_checks import UPDATE_REMOVALS

REMOVALS = (*UPDATE_REMOVALS, *IDENTITY_REMOVALS, *TELEMETRY_REMOVALS)

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
