"""sidecert beside other proxies that add the same client certificate: what a call costs in each.

    scenarios   what is asked: which load, on which upstream, of which proxies
    ground      the upstream that all of one series call, with its certificates and its distance
    proxies     one description per proxy: its configuration and its command line
    contenders  a proxy as a running process that has answered
    load        calls, made by wrk or by caller.c, and what their caller saw
    processes   what the kernel says of a process: CPU, memory, cores
    measure     the flow: series by series, round by round, each contender in turn
    report      all figures, as a table and as JSON; goals and plots are drawn from it

`make bench` runs the quick form, `make bench ARGS=--all` all of it. Ratios within one run are what counts:
the machine and what else runs on it change every absolute figure. Nothing here is asserted anywhere.
"""
