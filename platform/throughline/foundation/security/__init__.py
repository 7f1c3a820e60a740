"""Who calls: principals and tokens."""
