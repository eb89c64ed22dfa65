"""The built-in family: a procedural world and the commands that train every model on it."""

import huvidpo  # noqa: F401  # first: it quiets libraries before they are loaded
