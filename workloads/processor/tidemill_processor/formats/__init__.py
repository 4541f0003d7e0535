"""Record formats with schemas: the client of the schema registry, and readers for each writer's schema."""
