"""Federated rounds: what is asked, how replies travel, and how they are folded."""
