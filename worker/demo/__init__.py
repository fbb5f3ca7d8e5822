"""What `worker/demo.sh` is made of: an analysis in an image, and the program that runs it through Girder."""
