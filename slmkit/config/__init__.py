"""Run and job configuration: frozen pydantic models read from YAML and overrides."""
