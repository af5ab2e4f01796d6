"""New values for the cluster's secrets, and the way of everything that runs to them."""
