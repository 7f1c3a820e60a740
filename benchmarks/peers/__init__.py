"""What the serving benchmark measures us against: a process each, as lean as its users can have it.

Owns: those processes. Does not own: when they run, what they are sent (`benchmarks/serving_peers.py`).
"""
