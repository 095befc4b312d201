"""The addressing side of the store: keys, what lives under them, sets of keys, shards (spec keyspace.md).

In come keys and values as bytes; out come facts (which relations exist, how large they are, which keys a shard keeps).
This room never decides when something is read, written or dropped, and never touches disk: readers are handed to it.
"""
