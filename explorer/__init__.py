"""A random explorer of faults: jobs whose every result is known, on a cluster that breaks in ways that a seed decides.

`make faults` runs it, see docs/faults.md. Nothing in the cluster imports it.

    workload, schedule, checker, ledger        pure: what a seed asks for, what must come of it, what is reported
    tasks, master, fork_server, broker_client  run in the engine's environment: tasks, masters, workers, queues
    proxy, world, injector                     the cluster on this machine, and what breaks in it
    runs                                       one run from its seed to its verdict, and its replays
"""
