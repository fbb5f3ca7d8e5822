"""Containers: what to run, as arguments of Apptainer."""
