"""What the ranks of a test import: a fork server does it once for all of them. Imported by nothing else."""

import vitscale.api
import vitscale.cli  # noqa: F401
from tests.collector import skip_imports

skip_imports()
