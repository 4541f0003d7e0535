"""The command `tidemill up`, which runs pipelines on one machine."""
