"""The way in: sources of WAL (a primary, files), base backups that become image layers, rare records that become values."""
