"""Ways to compute attention, each with its slow twin in `reference`; `choice` picks among them."""
