"""Whatever is expensive or surprising is decided here, before a device is touched, with the reason for each choice."""
