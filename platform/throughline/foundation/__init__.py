"""What every floor stands on: errors, settings, clocks, days, fingerprints, tags, security."""
