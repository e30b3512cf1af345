"""The benchmark: the gateway beside a null server and its peers. `python -m benchmarks`.

The null server does nothing but write ready-made bytes, once per tick, to every connection: what
the kernel and the event loop allow. The gateway's figures are shown as ratios to it, because a
ratio survives a change of machine, and both are measured in turns, in one run, because machines
are noisy. Servers and receivers are processes of their own.

    child             a process with commands on its standard input (both ends)
    message           what is published, and how a receiver recognizes it
    wire  streams     a transport: request, greeting, ready-made bytes; what a stream has to be
    receiver  crowd   thousands of subscribers in one process; several of those as one
    null_server  gateway_server  aiohttp_server   the servers
    producer          publishes inside a server, batch by batch, paced by the slowest subscriber
    amqp_publisher  kafka_publisher  http_publisher  stomp_clients   publishers outside
    posts             how each server wants a publish over HTTP
    climb             the rate that a server holds with a publisher outside it
    owner             what the contexts have in common
    rig  latencies    a server with its crowd; how long messages took
    peers             whom a user would pick instead; node/ has the bridges
    plan  bench       how much of everything; one run, with the brokers that parts share
    fanout  ceiling  latency  topics  connections  idle  ingest  workers  growth
                      the parts, listed in parts
    figures  table  picture  machine   the output
    durable           on its own: what the embedded broker's data directory costs a publisher
    sleeper/          on its own: what clients that sleep cost the gateway and the others
    kafka_replay      on its own: a Kafka topic read from its first record by many at once

A figure is shown only when every subscriber got every message in order; see receiver.py.
"""
