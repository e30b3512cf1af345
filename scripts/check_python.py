"""Says in one sentence why this interpreter cannot make Queuecast's environment, if so.

Uses nothing newer than Python 3.6, so that an old interpreter gets the sentence and no traceback.
"""

import importlib.util
import sys

NEEDED = (3, 11)


def main() -> None:
    found = sys.version_info[:2]
    if found < NEEDED:
        sys.exit(
            f"Queuecast needs Python {NEEDED[0]}.{NEEDED[1]} or newer, and {sys.executable} is "
            f"Python {found[0]}.{found[1]}. Name another one, for example: make PYTHON=python3.12"
        )
    for module in ("venv", "ensurepip"):
        if importlib.util.find_spec(module) is None:
            sys.exit(
                f"{sys.executable} cannot make virtual environments, its module {module} is "
                "missing. On Debian and Ubuntu: apt-get install python3-venv"
            )


if __name__ == "__main__":
    main()
