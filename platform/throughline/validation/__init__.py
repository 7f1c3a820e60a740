"""Are the rows of a raw table what its declaration says? Rules, verdicts, statistics, drafts of expectations."""
