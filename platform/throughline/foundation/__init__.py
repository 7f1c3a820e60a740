"""What every package uses: errors, settings, clocks, days, files, fingerprints, references, tags, security."""
