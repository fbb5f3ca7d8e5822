"""What the worker's container of the profile `cluster` runs besides girder-slurm itself."""
