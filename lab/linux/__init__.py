"""How this machine plays them, as root: namespaces, disks, images, containers."""
