"""Weights that come from elsewhere: another run, another resolution, another library."""
