"""Which check stops which attack of test_telemetry_attacks; see `attack_checks`."""

from check_removal import Check, Removal

TELEMETRY_REMOVALS = (
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
