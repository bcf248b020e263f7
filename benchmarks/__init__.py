"""Scripts of the performance claims: python -m benchmarks.NAME"""

import cli.environment  # noqa: F401  # before torch is loaded
