"""`python -m leanconv`: the command line."""

import sys

from leanconv.cli import main

sys.exit(main())
