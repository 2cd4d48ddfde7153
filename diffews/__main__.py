"""`python -m diffews` is the command `diffews`."""

import sys

try:
    from diffews.cli.main import main
except ModuleNotFoundError as error:
    cure = "run bash scripts/setup.sh, then . .venv/bin/activate"
    sys.exit(f"diffews: error: {error}; {cure}")
except KeyboardInterrupt:
    sys.exit(130)

sys.exit(main())
