"""A mounted ConfigMap or Secret: a directory that is replaced the way the kubelet does it."""

import itertools
import os
import shutil
from pathlib import Path

_generation = itertools.count()


def mount(directory: Path, files: dict[str, str]) -> Path:
    """Write `files` (name -> content) as a new generation; return the directory.

    As in kubernetes/pkg/volume/util/atomic_writer.go: a new directory, one rename of the link `..data`, links for new names,
    removed links for old ones, and the old directory goes.
    """
    directory.mkdir(exist_ok=True)
    data = directory / "..data"
    old = directory / os.readlink(data) if data.is_symlink() else None
    new = directory / f"..2026_11_23_10_00_00.{next(_generation)}"
    new.mkdir()
    for name, content in files.items():
        (new / name).write_text(content)
    temporary = directory / "..data_tmp"
    temporary.symlink_to(new.name)
    temporary.rename(data)
    for name in files:
        if not (directory / name).is_symlink():
            (directory / name).symlink_to(f"..data/{name}")
    for path in directory.iterdir():
        if path.is_symlink() and not path.name.startswith("..") and path.name not in files:
            path.unlink()
    if old is not None:
        shutil.rmtree(old)
    return directory
