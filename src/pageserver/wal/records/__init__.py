"""What each rare record means for the keyspace (spec wal.md 5, 6; stock.md 1, 2): one module for each group of
resource managers.

A function takes the writer and the record's parsed detail; it decides nothing but what the record says.
"""
