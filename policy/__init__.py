"""Guard rails: what must be true of the resources that the program registers, and where it is not, the reason."""
