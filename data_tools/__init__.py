"""Makes data sets: fetches, packs and checks what `vitscale` trains on."""
