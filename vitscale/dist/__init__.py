"""Ranks, collectives and counter-based seeding."""
