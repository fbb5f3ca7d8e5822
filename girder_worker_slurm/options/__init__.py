"""Which sbatch options a job gets: from the site, its image and its user, checked and limited. Pure."""
