"""Serving model versions: revisions, deployment to a target, changes of champion, the client of the endpoint."""
