"""`python -m emiliad` is `emiliad`."""

import sys

from emiliad.cli import main

sys.exit(main())
