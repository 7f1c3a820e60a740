"""Flights leaving New York in 2013: sources, feature definitions, request-time features."""
