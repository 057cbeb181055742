"""Which outputs hold times, and so differ at every run."""

import re

TIMED = re.compile(r"metrics/latency\.json|plots/(latency|operating_curve)\.(csv|png)")
