"""Numbers -> Altair charts, and the gallery that puts titles and captions on them."""
