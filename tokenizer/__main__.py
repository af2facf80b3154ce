"""`python -m tokenizer`."""

from __future__ import annotations

import sys

from tokenizer.cli import main

sys.exit(main())
