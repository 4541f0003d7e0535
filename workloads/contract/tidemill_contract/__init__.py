"""The code that operator and workloads share: resource model, names, configs, tables, events and expressions."""
