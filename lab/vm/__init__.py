"""A node with a kernel of its own: Debian's, in QEMU's software emulation, in the lab's network."""
