"""AffectNet as its authors give it; `utils.convert_affectnet` makes class folders of it."""
