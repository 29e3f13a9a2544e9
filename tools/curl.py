"""Do what `curl -d DATA URL` does: print the response to a POST request.

The demo runs this for curl, because a bare machine doesn't have it, and because curl
prints its progress when its output isn't a terminal.
"""

from __future__ import annotations

import sys
import urllib.error
import urllib.request

_, _, data, url = sys.argv
try:
    response = urllib.request.urlopen(url, data.encode(), timeout=60)
except urllib.error.HTTPError as error:
    response = error  # curl prints the body of a refusal, too, and exits with status 0
print(response.read().decode(), end="")
