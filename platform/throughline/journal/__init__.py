"""Lines kept on disk between their receipt and a table."""
