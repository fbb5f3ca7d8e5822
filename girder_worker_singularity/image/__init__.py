"""What an image is called, and how it wants to be started. Pure."""
