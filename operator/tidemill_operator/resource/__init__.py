"""The resource as Kubernetes knows it: its definition, made from the model, and the reference pages."""
