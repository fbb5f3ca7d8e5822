"""What is copied into the demonstration's image, below its working directory."""
