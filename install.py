"""Install what the extension needs and the WebUI does not have; called by the WebUI before it starts.

Nothing that is there is upgraded or replaced, and where all is there, nothing is run: it works offline. torch and numpy
are the WebUI's own and are never touched.
"""

import importlib.util
import subprocess
import sys

_NEEDED = {"lark": "lark>=1.1.2", "safetensors": "safetensors>=0.4.2"}


def missing():
    """Return what to give to pip for the packages that cannot be found."""
    return [wanted for name, wanted in _NEEDED.items() if importlib.util.find_spec(name) is None]


def main():
    """Install the missing packages; say in one line what happened if that fails."""
    wanted = missing()
    if not wanted:
        return
    try:
        subprocess.run([sys.executable, "-m", "pip", "install", "--prefer-binary", *wanted], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = ascii(str(error))[1:-1]  # a console on Windows may lack characters of a path
        print(f"[lora-runtime] could not install {' '.join(wanted)} ({reason}); the built-in Lora extension stays")


if __name__ == "__main__":
    main()
