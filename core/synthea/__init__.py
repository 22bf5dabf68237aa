"""Synthea's CSV export: read and checked (pure), then loaded into a tenant."""
