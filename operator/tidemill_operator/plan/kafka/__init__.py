"""Plan the topics of a pipeline, their owners, and the placement of their replicas."""
