"""One module for each question asked, run from the configs."""
