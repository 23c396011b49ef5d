"""Run and job configuration: frozen dataclasses read from YAML and overrides."""
