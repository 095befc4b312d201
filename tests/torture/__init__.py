"""The torture load: all that PostgreSQL can write to its log, at once, against a server that is being followed."""
