"""Training from config files: data, configs, the loop, checkpoints, run folders and reports.

Bad input is a ValueError, ConfigError, DataError, ShapeError, RunError or CheckpointError. Its message has the
requirement, the value given, and the repair.
"""
