"""sidecert beside other proxies that add the same client certificate: what a call costs in each.

`make bench` runs it (ROUNDS=, SECONDS= and ARGS=--json). Ratios within one run are what counts: the machine
and what else runs on it change every absolute figure. Nothing here is asserted anywhere.
"""
