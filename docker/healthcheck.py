"""The image's HEALTHCHECK: exit code 0 when the server in this container is ready. Needs the standard library only.

It asks the port that the server's own configuration file names, so it follows whatever file the container was given.
"""

import http.client
import json
import sys
from pathlib import Path


def config_path(cmdline: bytes, cwd: Path) -> Path:
    """Return the configuration file of process 1: `python tfoai [CONFIG]`, or the init that runs it."""
    last = cmdline.rstrip(b"\0").split(b"\0")[-1].decode()
    return cwd / (last if last.endswith(".json") else "config.json")


def is_ready(path: Path) -> bool:
    config = json.loads(path.read_text())
    port = config.get("METRICS_PORT") or config.get("PORT", 5000)
    connection = http.client.HTTPConnection("localhost", port, timeout=4)
    connection.request("GET", "/readyz")
    return connection.getresponse().status == 200


if __name__ == "__main__":
    try:
        sys.exit(0 if is_ready(config_path(Path("/proc/1/cmdline").read_bytes(), Path("/proc/1/cwd").resolve())) else 1)
    except (OSError, ValueError) as error:
        sys.exit(f"not ready: {error}")
