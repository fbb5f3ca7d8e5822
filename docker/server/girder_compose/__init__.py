"""What the containers of docker-compose.yaml run: Girder's processes, and the steps around their start.

Needs what a Girder 5 installation has and nothing else, so that any image with Girder in it will do.
"""
