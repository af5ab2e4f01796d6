"""An NFS server for nodes with a kernel of their own: NFS-Ganesha on the mount targets' addresses, as EFS speaks it.

Version 4.1, numeric owners, root is root, one export at `/`. It keeps no attributes, since a master in a container
changes files behind its back.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from components.facts import NFS_PORT
from lab.linux.host import Paths, in_netns, start

_SERVER: Final = "ganesha.nfsd"
_CONFIGURATION: Final = """\
NFS_CORE_PARAM { Protocols = 4; NFS_Port = %(port)d; Enable_NLM = false; Enable_RQUOTA = false; Enable_UDP = false; }
NFSv4 { Minor_Versions = 1; Only_Numeric_Owners = true; RecoveryBackend = fs; Graceless = true; }
EXPORT {
  Export_Id = 1; Path = %(directory)s; Pseudo = /; Access_Type = RW; Squash = No_Root_Squash; SecType = sys;
  Protocols = 4; Transports = TCP; Attr_Expiration_Time = 0; FSAL { Name = VFS; }
}
LOG { Default_Log_Level = EVENT; }
"""


def missing() -> list[str]:
    """What this machine lacks for it; empty when nothing."""
    return [] if shutil.which(_SERVER) else [f"{_SERVER} (nfs-ganesha, nfs-ganesha-vfs)"]


def serve(paths: Paths, directory: Path) -> None:
    """Start it on a directory, in the namespace of AWS's own addresses."""
    own = paths.state / "nfs"
    own.mkdir()
    configuration = own / "ganesha.conf"
    configuration.write_text(_CONFIGURATION % {"port": NFS_PORT, "directory": directory})
    command = [_SERVER, "-F", "-f", str(configuration), "-p", str(own / "pid"), "-L", str(own / "log")]
    start(paths, in_netns(paths.netns("aws"), command), own / "output")
