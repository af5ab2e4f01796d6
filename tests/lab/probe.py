"""Which TCP ports of an address packets get to; a program on its own, run inside a namespace of the lab.

    probe.py ADDRESS FIRST LAST CONTROL PORT

A port where nobody listens answers with a reset: then the packet got there, too. What security groups drop gives no
answer at all. Prints the ports that answered, as a JSON list.

That nothing answers shows something only if packets were sent and answers had the time to come. So each one has to
be sent, and after all of them one goes to a port that is known to answer, CONTROL:PORT: it is waited for.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import select
import socket
import sys
import time

AT_ONCE = 16384
OWN_FILES = 32
CONTROL_SECONDS = 60.0  # for the answer that has to come, on a busy machine
# And from then on for all others: they take less than a millisecond more, unless the first packet is lost: a second.
SECONDS = 2.5


def answering(address: str, ports: range, control: tuple[str, int]) -> set[int]:
    """Those of at most AT_ONCE ports that answer until SECONDS after `control` has answered."""
    poll = select.epoll()
    sockets: dict[int, tuple[int | None, socket.socket]] = {}

    def send(target: tuple[str, int], port: int | None) -> None:
        one = socket.socket()
        one.setblocking(False)
        status = one.connect_ex(target)
        if status not in (0, errno.EINPROGRESS, errno.ECONNREFUSED):
            raise SystemExit(f"nothing was sent to {target}: {os.strerror(status)}")
        poll.register(one, select.EPOLLOUT)
        sockets[one.fileno()] = port, one

    for port in ports:
        send((address, port), port)
    send(control, None)
    found: set[int] = set()
    heard, deadline = False, time.monotonic() + CONTROL_SECONDS
    while (left := deadline - time.monotonic()) > 0:
        for number, _ in poll.poll(left):
            answered, one = sockets.pop(number)
            if one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) in (0, errno.ECONNREFUSED):
                if answered is None:
                    heard, deadline = True, time.monotonic() + SECONDS
                else:
                    found.add(answered)
            one.close()
    for _, one in sockets.values():
        one.close()
    if not heard:
        raise SystemExit(f"{control} does not answer, so that silence of {address} says nothing")
    return found


def main(address: str, first: int, last: int, control: tuple[str, int]) -> None:
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, allowed))
    at_once = min(AT_ONCE, allowed - OWN_FILES)
    found: set[int] = set()
    for start in range(first, last + 1, at_once):
        found |= answering(address, range(start, min(start + at_once, last + 1)), control)
    print(json.dumps(sorted(found)))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), (sys.argv[4], int(sys.argv[5])))
