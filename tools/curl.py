"""Do what `curl -d DATA URL` does: print the response to a POST request.

The demo runs this for curl, because a bare machine doesn't have it, and because curl
prints its progress when its output isn't a terminal.
"""

import sys
import urllib.request

_, _, data, url = sys.argv
print(urllib.request.urlopen(url, data.encode(), timeout=60).read().decode(), end="")
