"""Pure: the topics of a pipeline, whose they are, and where their replicas lie."""
