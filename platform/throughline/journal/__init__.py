"""Lines on disk between their receipt and a table."""
