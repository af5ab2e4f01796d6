"""What people run on a lab: the demo, jobs, faults, the engine's own jobs."""
