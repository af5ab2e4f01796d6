"""Which TCP ports of an address packets get to; a program on its own, run inside a namespace of the lab.

    probe.py ADDRESS FIRST LAST

A port where nobody listens answers with a reset: then the packet got there, too. What security groups drop gives no
answer at all. Prints the ports that answered, as a JSON list.
"""

from __future__ import annotations

import errno
import json
import resource
import select
import socket
import sys
import time

AT_ONCE = 16384
OWN_FILES = 32
SECONDS = 2.5  # answers within a machine take less than a millisecond, unless the first packet is lost: a second more


def answering(address: str, ports: range) -> set[int]:
    """Those of at most AT_ONCE ports that answer within SECONDS."""
    poll = select.epoll()
    sockets = {}
    for port in ports:
        one = socket.socket()
        one.setblocking(False)
        if one.connect_ex((address, port)) not in (0, errno.EINPROGRESS, errno.ECONNREFUSED):
            one.close()  # no route: nothing was sent
            continue
        poll.register(one, select.EPOLLOUT)
        sockets[one.fileno()] = port, one
    found = set()
    deadline = time.monotonic() + SECONDS
    while (left := deadline - time.monotonic()) > 0:
        for number, _ in poll.poll(left):
            port, one = sockets.pop(number)
            if one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) in (0, errno.ECONNREFUSED):
                found.add(port)
            one.close()
    for _, one in sockets.values():
        one.close()
    return found


def main(address: str, first: int, last: int) -> None:
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, allowed))
    at_once = min(AT_ONCE, allowed - OWN_FILES)
    found: set[int] = set()
    for start in range(first, last + 1, at_once):
        found |= answering(address, range(start, min(start + at_once, last + 1)))
    print(json.dumps(sorted(found)))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
