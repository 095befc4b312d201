"""Object stores for tests: servers that are provisioned, started and stopped, a stub of GCS, a proxy that breaks."""
