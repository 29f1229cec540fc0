"""Typed configuration: `schema` holds every key and its default, `loader` composes recipes and overrides."""
