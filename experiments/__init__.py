"""Scripts of the tables and figures: python -m experiments.NAME"""

import cli.environment  # noqa: F401  # before torch is loaded
