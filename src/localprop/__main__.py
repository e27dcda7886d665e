"""`python -m localprop`, the same as the command `localprop`."""

import sys

from localprop.cli import main

sys.exit(main())
