"""Nodes with a kernel of their own: Debian's, in QEMU's software emulation, in the lab's network."""
