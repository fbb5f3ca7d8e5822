"""Is this site ready? The checks behind `girder-slurm doctor`, some of which the worker makes at each start.

One module per area, in the order in which a job meets them; `checklist` puts them together. A function named
``judge_...`` is pure: facts in, findings out. Nothing here imports the assembly, which imports `start_checks`.
"""
