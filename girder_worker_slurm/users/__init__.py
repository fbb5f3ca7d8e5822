"""Who may do what: from Girder's users to accounts, options and limits in Slurm."""
