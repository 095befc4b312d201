"""The commands `pageserver` (runs the server) and `pagectl` (speaks to one over HTTP, and reads files without one).

The edge of the house: command lines, terminals and environment are read here and nowhere below.
"""
