"""The way in: sources of WAL, base copies that become image layers, rare records that become values."""
