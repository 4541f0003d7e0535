"""The resource AnalyticsPipeline: its model, its rules, and the validation of documents."""
