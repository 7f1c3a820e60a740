"""Registered model versions: in MLflow, their history, decisions and approvals."""
