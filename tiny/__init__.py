"""The built-in family: a procedural world and the commands that train every model on it."""

import sys

from huvidpo import command  # first: huvidpo quiets libraries before they are loaded

if command.launched() > 1:  # each would write the same files
    sys.exit(f"tiny: got {command.launched()} processes, it runs in one: start it without a launcher")
