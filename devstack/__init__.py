"""The real stack: Slurm, Apptainer, RabbitMQ, Redis, MongoDB, Girder and a registry on one plain machine.

Standard library only, because it runs before anything is installed.
"""
