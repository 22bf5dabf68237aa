"""An app outside of core, as a team would write it: one table, one registration."""
