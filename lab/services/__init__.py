"""What nodes talk to, a process each: instance metadata, AWS's API."""
