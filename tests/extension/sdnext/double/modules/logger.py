"""The program's log, which its users read in the console and in the UI."""

import logging

log = logging.getLogger("sd")
