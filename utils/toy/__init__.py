"""Cartoon faces with expressions; `utils.toy_faces` makes data sets of them."""
