"""The protocols of robench, one TOML file each; see `robench.registry`."""
