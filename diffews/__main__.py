"""`python -m diffews` is the command `diffews`."""

import sys

from diffews.cli import main

sys.exit(main())
