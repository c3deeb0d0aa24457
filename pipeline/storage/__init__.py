"""URLs and what lies behind them: the only place that speaks fsspec for data."""
