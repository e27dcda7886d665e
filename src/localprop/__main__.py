"""`python -m localprop` does the same as the command `localprop`."""

import sys

from localprop.cli.main import main

sys.exit(main())
