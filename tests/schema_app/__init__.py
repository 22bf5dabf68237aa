"""A small app and its servers, for the tests of core/schema."""
