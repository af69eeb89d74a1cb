"""`python -m mirai`, which is how ranks are started."""

import sys

from mirai.cli import main

sys.exit(main())
