"""Which TCP ports of an address packets get to; a program on its own, run inside a namespace of the lab.

    probe.py ADDRESS FIRST LAST

A port where nobody listens answers with a reset: then the packet got there, too. What security groups drop gives no
answer at all. Prints the ports that answered, as a JSON list.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys

AT_ONCE = 4000
SECONDS = 1.0


async def gets_there(address: str, port: int, limit: asyncio.Semaphore) -> bool:
    async with limit:
        try:
            _, writer = await asyncio.wait_for(asyncio.open_connection(address, port), SECONDS)
        except ConnectionRefusedError:
            return True
        except (TimeoutError, OSError):
            return False
        writer.close()
        return True


async def main(address: str, first: int, last: int) -> None:
    limit = asyncio.Semaphore(AT_ONCE)
    ports = range(first, last + 1)
    answers = await asyncio.gather(*(gets_there(address, port, limit) for port in ports))
    print(json.dumps([port for port, answer in zip(ports, answers, strict=True) if answer]))


if __name__ == "__main__":
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 2 * AT_ONCE), hard))
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
