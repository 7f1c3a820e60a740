"""The model server: KServe's, with one model per use case that reads features online and logs every prediction."""
