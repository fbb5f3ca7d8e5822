"""Ways to reach Slurm; `interface` says what all of them can do."""
