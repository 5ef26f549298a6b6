"""The functional core: statistics, ranges, corrections, graphs and artifacts; no I/O, no clock, no logging."""
