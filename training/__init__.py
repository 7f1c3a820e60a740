"""Model code that runs under Horovod, a folder per use case; independent of the graph and of how features are made."""
