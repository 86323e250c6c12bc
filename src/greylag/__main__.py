"""``python -m greylag`` is ``greylag``."""

import sys

from greylag.cli.main import main

sys.exit(main())
