"""Training from config files: data, configs, the loop, checkpoints, run folders and reports."""
