"""Evaluation on rows held out by time, and the gate that decides on it."""
