"""How often things are written."""

seed = 0
checkpoint = dict(every=5_000, keep=2)
log = dict(every=100, pictures_every=5_000, pictures=8)
