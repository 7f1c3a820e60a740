"""Model code that runs under Horovod, a folder per use case; knows neither the graph nor the features' making."""
