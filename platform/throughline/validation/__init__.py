"""Validation of raw rows against their declaration: rules, verdicts, statistics, drafts of expectations."""
