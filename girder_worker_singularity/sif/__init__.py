"""SIF files: made, read, kept."""
