"""What the worker keeps on disk about jobs: the only source of truth across restarts."""
