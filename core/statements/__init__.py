"""A statement on its way: planned, its arguments bound, in a transaction, recorded, opened, its errors explained."""
