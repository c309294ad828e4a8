"""``python -m resnet_limits.cli``."""

import sys

from resnet_limits.cli import main

sys.exit(main())
