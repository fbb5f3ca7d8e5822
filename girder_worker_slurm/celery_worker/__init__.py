"""What meets Celery: which tasks are taken over, how messages come in and how results go back."""
