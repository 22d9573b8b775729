"""What each command of `cgm-proxy` does: `serve`, `demo`, `check` and `rules`.

`cli.py` parses the arguments and imports a command's module only when that command runs.
"""
