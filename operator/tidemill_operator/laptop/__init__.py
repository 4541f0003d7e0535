"""`tidemill up`: runs pipelines on one machine."""
