"""The life of one job: its states, its story and the supervisor that carries all jobs along."""
