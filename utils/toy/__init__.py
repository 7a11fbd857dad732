"""Cartoon faces with expressions; `utils.toy_faces` makes data sets of them."""

MARKER = "toy.json"  # in a finished set's folder: what it was drawn from
