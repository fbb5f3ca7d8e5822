"""Jobs and faults for a while, and an account of every job at the end."""
