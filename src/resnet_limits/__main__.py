"""``python -m resnet_limits``: the command line."""

import sys

from resnet_limits.cli import main

sys.exit(main())
