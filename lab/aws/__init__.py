"""What AWS's words mean: plain data and arithmetic, no root, no process."""
