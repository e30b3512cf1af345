"""The benchmark: the gateway's broadcast path beside a null server. `python -m benchmarks`.

The null server does nothing but write ready-made bytes, once per tick, to every connection: what
the kernel and the event loop allow. The gateway's figures are shown as ratios to it, because a
ratio survives a change of machine, and both are measured in turns, in one run, because machines
are noisy. Servers and receivers are processes of their own.

    child         a process with commands on its standard input (both ends)
    message       what is published, and how a receiver recognizes it
    wire          a transport: request, greeting, ready-made bytes, check of a stream
    producer      publishes batch by batch, paced by the slowest subscriber
    null_server   gateway_server   the two servers under test
    receiver      thousands of subscribers in one process
    rig           a server with its receiver
    latencies     what each read took, counted by its messages
    fanout        latency          idle       the measurements
    webstomp      amqp_publisher              RabbitMQ's own plugin beside the gateway
    table         machine                     their output
    durable       on its own: what the embedded broker's data directory costs a publisher
    sleeper/      on its own: what clients that sleep cost the gateway and the others
    kafka_replay  on its own: a Kafka topic read from its first record by many at once

A figure is shown only when every subscriber got every message in order; see receiver.py.
"""
