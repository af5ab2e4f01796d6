"""`python -m oq_cluster`, for where the command itself is not on PATH."""

import sys

from oq_cluster.cli import main

sys.exit(main())
