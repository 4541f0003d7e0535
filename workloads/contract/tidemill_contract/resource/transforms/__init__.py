"""The rules of `spec.transform`, except the rules for derives and the filter."""
