"""The job script: what runs on the compute node, and how it is made."""
