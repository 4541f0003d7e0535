"""Files of the charts that are generated: each chart's README."""
