"""Fleets of simulated devices in one process, with drifts, faults, tasks and reports."""
