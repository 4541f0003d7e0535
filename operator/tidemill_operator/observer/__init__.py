"""How far pipelines are behind, seen by a process that is not one of their processors."""
