"""What the master looks at every minute."""
