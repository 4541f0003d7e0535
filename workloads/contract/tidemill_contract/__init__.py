"""The code that the operator and the workloads share: resource model, names, tables, events and expressions."""
