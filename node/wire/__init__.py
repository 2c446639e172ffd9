"""What nodes say to each other: messages, sealed streams, and the client that dials.

`messages` and `frames` are sans-I/O: bytes in, values out. `peer` is the port that both a seller's service and the HTTP
client implement, so that buyer and seller meet over a socket or directly.
"""
