"""The built-in family: a procedural world and the commands that train every model on it."""
