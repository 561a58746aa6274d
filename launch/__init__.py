"""vitscale_launch starts vitscale runs through Ray: training with restarts, and sweeps. See `vitscale-launch --help`."""
