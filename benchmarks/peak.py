"""Run a command; print its peak memory in bytes, as a last line.

A process of its own, and a small one: what a process has used at most starts, on Linux, with what
its parent used, and the benchmark itself uses more than the scripts that it measures.
"""

import resource
import subprocess
import sys

code = subprocess.run(sys.argv[1:]).returncode
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(peak if sys.platform == "darwin" else peak * 1024)
sys.exit(code)
