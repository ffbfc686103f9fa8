"""Benchmarks: the hand-written backward pass beside the best that autodiff does, in one process."""
