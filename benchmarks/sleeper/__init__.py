"""A client that sleeps while messages flow, and what it costs. `python -m benchmarks.sleeper`.

A gateway as operators run it gets 10,000 messages a second. Some clients read all the time; some
are stopped with SIGSTOP, as a laptop that is closed, and woken again. Every client that reads has
to have every message in order; who slept, every message that is still kept, with a gap where none
is; and the gateway's memory stays within what its settings allow.

    feeds         the destinations: retained, retained for too short a time, not retained
    publisher     others          children: who sends, and who reads all the time
    client        the client that sleeps, a process of its own (Node's EventSource in the tests)
    story         what a client that slept has seen, and whether that is right
    run           all of it, phase by phase
"""
