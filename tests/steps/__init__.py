"""Every step: crash before and after each call, rename and fsync of an operation, start again, look."""
