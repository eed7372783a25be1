"""Numbers -> Altair charts, and the gallery that puts titles and captions on them."""

from search.report.charts.surface import collapse_chart, heat_map, lr_curves, ridge_chart

__all__ = ["collapse_chart", "heat_map", "lr_curves", "ridge_chart"]
