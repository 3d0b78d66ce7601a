"""Which files of a folder are data: not what is hidden, temporary, thrown away or half there. The others are named."""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

# Names that nobody means who names the folder they lie in: what is hidden (with it .Trash, .ipynb_checkpoints,
# .DS_Store, Hadoop's .x.crc, macOS' ._x, .nfs and .fuse_hidden), Spark's own, system files and folders, those of
# Synology, QNAP and NetApp too, backups of editors, with number or date, downloads and copies under way.
ASIDE = re.compile(
    r"""\..* | __macosx | __pycache__ | _temporary | _success | _metadata | _common_metadata | _delta_log
    | _spark_metadata | (_committed|_started)_.* | thumbs\.db | desktop\.ini | \$recycle\.bin | recycler | lost\+found
    | system\ volume\ information | @(eadir|recycle|recently-snapshot|__thumb|tmp) | \#(recycle|snapshot) | ~snapshot
    | .*~ | ~\$.* | \#.*\# | .*\.(crc|crdownload|download|filepart|incomplete|lock|part|partial|sw[a-p]|_copying_)
    | .*\.(backup|bak|old|orig|te?mp) ([._-]?\d[\dt:._-]* | \ ?\(\d+\))?
    | (.*\.)?te?mp [._-][\w-]*\d[\w-]* | .*\.tmp\w{6,}""",  # mktemp's tmp.k3Jd82, and .tmpk3Jd82
    re.VERBOSE | re.DOTALL,
)
APPLE_DOUBLE = b"\x00\x05\x16\x07"  # macOS keeps what its own file system knows of a file in such a file beside it


def is_aside(path: Path) -> bool:
    """Whether a file or folder is passed over where it is not named itself."""
    return bool(ASIDE.fullmatch(path.name.lower())) or is_apple_double(path)


def is_apple_double(path: Path) -> bool:
    """Whether a file holds no text but what macOS notes about another file."""
    try:
        if not path.is_file():  # a pipe would be waited for
            return False
        with open(path, "rb") as stream:
            return stream.read(4) == APPLE_DOUBLE
    except OSError:  # reading it says so
        return False


def walk(folder: Path, skip: Callable[[Path], bool]) -> Iterator[tuple[Path, bool]]:
    """Every file below, and whether it is set aside; in place of a folder set aside, or one to `skip`, that folder.

    Links to folders are followed, no folder twice. OSError when a folder cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise error

    seen = set()
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        inside = [Path(parent, name) for name in sorted(folders)]
        aside = {path: is_aside(path) for path in inside}
        kept = [path for path in inside if not aside[path] and not skip(path)]
        yield from ((path, aside[path]) for path in inside if path not in kept)
        folders[:] = [path.name for path in kept]
        yield from ((path, is_aside(path)) for path in (Path(parent, name) for name in names))
