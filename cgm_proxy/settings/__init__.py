"""Settings: one YAML file and the environment, checked strictly, with the file, line and cure of each fault."""
