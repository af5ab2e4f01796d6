"""The command `oq-cluster`: OpenQuake calculations on a cluster, from the user's own computer."""

__version__ = "0.1.0"
