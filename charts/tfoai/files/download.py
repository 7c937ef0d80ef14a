"""The init container of `download`: fetches models into the cache, so that the server finds them there."""

import json
import sys
import time

from huggingface_hub import snapshot_download

with open(sys.argv[1]) as file:
    wanted = json.load(file)
for model in wanted["models"]:
    started = time.monotonic()
    path = snapshot_download(model["name"], revision=model.get("revision"), ignore_patterns=wanted["ignore_patterns"] or None)
    print(f"{model['name']}: {path}, {time.monotonic() - started:.0f} s", flush=True)
