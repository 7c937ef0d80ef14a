"""Prints what pyproject.toml says the server needs: the image installs that in a layer before the server itself."""

import sys
import tomllib

with open(sys.argv[1], "rb") as file:
    print("\n".join(tomllib.load(file)["project"]["dependencies"]))
