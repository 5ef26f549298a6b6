"""Wire schema `quantfleet.v1` and the code generated from it."""
