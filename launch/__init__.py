"""Commands, run from a checkout as `python -m launch.<name>`; each answers `--helpfull`.

They hold no logic of their own: flags become a configuration, and `ratjax` does the rest.
"""
