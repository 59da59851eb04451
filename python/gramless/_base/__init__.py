"""Arrays, argument checks, errors, devices, memory, progress, process groups and streaming statistics."""
