"""AWS's networks, disks and instances on this machine: namespaces, loop devices, images, containers; as root."""
