"""Parameter groups and schedules; the optimizer itself is torch's AdamW, sharded by the engine."""
