"""Slow, obvious twins of compiled functions, used as oracles and never shipped."""
