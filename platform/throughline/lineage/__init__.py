"""The thread between a raw row and a live prediction, followed backwards (`trace`) and forwards (`impact`)."""
