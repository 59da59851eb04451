"""What `import gramless` costs: everything that uses the package pays it."""

from __future__ import annotations

import subprocess
import sys

# numpy is what every user has loaded already: it is imported first, and only what comes on top is counted
_PEAK = """
import numpy
def resident():
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
before = resident()
import gramless
print(resident() - before)
"""


def timeraw_import() -> str:
    return "import gramless"


def timeraw_import_after_numpy() -> tuple[str, str]:
    return "import gramless", "import numpy"


def track_import_peak_bytes() -> int:
    done = subprocess.run([sys.executable, "-c", _PEAK], capture_output=True, text=True, check=True)
    return int(done.stdout)


track_import_peak_bytes.unit = "bytes"
