"""Settings: which there are, and how they are read from one YAML file and the environment.

`sections.py` has the settings with their types, limits and defaults, `formats.py` the types of text. `loading.py` reads them all,
with `yaml_file.py` for the file and `schema.py` for each value.
"""
