"""The rules of `spec.transform`, except those of derives and the filter."""
