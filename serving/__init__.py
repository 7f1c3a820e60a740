"""The model server: KServe's, with one model per use case, which reads features online and logs every prediction."""
