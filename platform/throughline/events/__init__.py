"""The inference log: one CloudEvent per prediction, from the server's outbox to a Delta table, exactly once by id."""
