"""What a call will run and what it costs, without running it."""
